"""Sources and targets of a fetch: paths, hubs, hashes, and what cannot be read or written."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, NoReturn

import pytest
from typer.testing import CliRunner

from damoserve_compress.cli import app
from damoserve_compress.fetch import (
    ClientMissing,
    SourceGone,
    SourceInvalid,
    TargetUnusable,
    TransferFailed,
    WrongContent,
)
from damoserve_compress.fetch.sources import fetch
from tests.support.compress.web_server import CONTENT, SHA256, Web, serving


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as web:
        yield web


def test_a_path_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "kept.pth"
    source.write_bytes(CONTENT)
    assert fetch(str(source), tmp_path / "w", SHA256) == SHA256
    assert (tmp_path / "w").read_bytes() == source.read_bytes() == CONTENT
    with pytest.raises(WrongContent):
        fetch(str(source), tmp_path / "v", "0" * 64)
    assert {path.name for path in tmp_path.iterdir()} == {"kept.pth", "w"}


@pytest.mark.parametrize("source", ["ftp://host/w.pth", "hf:w.pth", "hf:owner/w.pth", "modelscope:owner//w.pth"])
def test_other_sources_are_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(SourceInvalid, match=source):
        fetch(source, tmp_path / "w")


@pytest.mark.parametrize("sha256", ["", "abc", "0" * 63 + "x", "0" * 65])
def test_what_is_no_hash_is_refused_before_anything_is_got(web: Web, tmp_path: Path, sha256: str) -> None:
    with pytest.raises(SourceInvalid, match="is no SHA-256"):
        fetch(web.address, tmp_path / "w", sha256)
    assert web.ranges == []


def test_a_missing_path_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceGone, match="there is no such file"):
        fetch(str(tmp_path / "nothing.pth"), tmp_path / "w")


class HubFault(OSError):
    """As both hubs raise their HTTP client's error, but for the text."""

    def __init__(self, response: object) -> None:
        super().__init__("404 not found\nRequest: GET ...")
        self.response = response


class ApiError(Exception):
    """ModelScope's own error, which it raises the other from."""

    status_code = 404


def raise_as_hugging_face() -> NoReturn:
    raise HubFault(SimpleNamespace(status_code=404))


def raise_as_modelscope() -> NoReturn:
    """As modelscope-hub 0.5 does: the response is lost."""
    raise HubFault(None) from ApiError()


class Hub:
    """Both hubs' clients as far as they are used: they know one file."""

    asked: ClassVar[list[tuple[object, ...]]] = []
    cached: Path
    lose: Callable[[], NoReturn]

    @classmethod
    def download(cls, repository: str, name: str, revision: str | None = None) -> str:
        cls.asked.append((repository, name, revision))
        if name == "lost.pth":
            cls.lose()
        if name == "slow.pth":
            raise ConnectionError("cut off")
        return str(cls.cached)


@pytest.fixture(params=["hf", "modelscope"])
def hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    Hub.asked.clear()
    Hub.cached = tmp_path / "cached.pth"
    Hub.cached.write_bytes(CONTENT)
    Hub.lose = staticmethod(raise_as_hugging_face if request.param == "hf" else raise_as_modelscope)

    def module(name: str, **members: Any) -> None:
        made = ModuleType(name)
        vars(made).update(members)
        monkeypatch.setitem(sys.modules, name, made)

    module("huggingface_hub", hf_hub_download=Hub.download)
    for name in ("modelscope", "modelscope.hub"):
        module(name)
    module("modelscope.hub.file_download", model_file_download=Hub.download)
    return str(request.param)


def test_hubs_are_asked_through_their_clients(hub: str, tmp_path: Path) -> None:
    assert fetch(f"{hub}:owner/name/folder/w.pth", tmp_path / "w", SHA256) == SHA256
    assert fetch(f"{hub}:owner/name/w.pth@v1", tmp_path / "v") == SHA256
    assert Hub.asked == [("owner/name", "folder/w.pth", None), ("owner/name", "w.pth", "v1")]
    assert (tmp_path / "w").read_bytes() == CONTENT
    assert Hub.cached.exists()


def test_what_a_hub_does_not_have_is_told(hub: str, tmp_path: Path) -> None:
    with pytest.raises(SourceGone, match=f"{hub}:o/n/lost.pth cannot be had: the hub says 404 not found. .*try"):
        fetch(f"{hub}:o/n/lost.pth", tmp_path / "w")
    with pytest.raises(TransferFailed, match="cut off"):
        fetch(f"{hub}:o/n/slow.pth", tmp_path / "w")


@pytest.mark.parametrize(("hub", "module"), [("hf", "huggingface_hub"), ("modelscope", "modelscope.hub.file_download")])
def test_without_the_client_the_error_says_what_to_install(
    hub: str, module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ClientMissing, match=r"pip install 'damoserve\[fetch\]'"):
        fetch(f"{hub}:o/n/w.pth", tmp_path / "w")


@pytest.mark.parametrize(("hub", "module"), [("hf", "huggingface_hub"), ("modelscope", "modelscope")])
def test_a_client_that_does_not_load_is_not_called_missing(
    hub: str, module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / f"{module}.py").write_text("import a_library_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ClientMissing, match="does not load: No module named 'a_library_that_is_not_there'"):
        fetch(f"{hub}:o/n/w.pth", tmp_path / "w")


def test_the_command_prints_the_hash_or_one_line_of_error(web: Web, tmp_path: Path) -> None:
    out = tmp_path / "w"
    done = CliRunner().invoke(app, ["fetch", web.address, "--out", str(out)])
    assert (done.exit_code, done.output) == (0, f"{out}: SHA-256 {SHA256}\n")
    failed = CliRunner().invoke(app, ["fetch", web.address + "x", "--out", str(out)])
    assert failed.exit_code == 1
    assert failed.output.startswith("Error: ")
    assert "404" in failed.output
    assert failed.output.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "message"),
    [(".", "is a folder: name a file"), ("folder", "is a folder: name a file"), ("file/w", "cannot be written: ")],
)
def test_a_target_that_cannot_be_is_refused_before_anything_is_got(
    web: Web, target: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("")
    failed = CliRunner().invoke(app, ["fetch", web.address, "--out", target])
    assert failed.exit_code == 1
    assert failed.output.startswith("Error: ")
    assert message in failed.output
    assert failed.output.count("\n") == 1
    assert web.ranges == []


def test_a_copy_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(CONTENT)
    (tmp_path / ".w.partial").mkdir()
    with pytest.raises(TargetUnusable, match="w cannot be written: Is a directory"):
        fetch(str(tmp_path / "kept"), tmp_path / "w")
