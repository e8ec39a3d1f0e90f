"""Getting files, against a server in this process that breaks off, forgets and changes its mind."""

import hashlib
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from damoserve_compress.cli import app
from damoserve_compress.fetch import ClientMissing, SourceGone, SourceInvalid, TransferFailed, WrongContent
from damoserve_compress.fetch.sources import fetch
from damoserve_compress.fetch.web import Attempts

CONTENT = bytes(range(256)) * 3000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
AT_ONCE = Attempts(count=3, wait=0)


@dataclass
class Web:
    """What the server does; `ranges` are the Range headers it was asked with."""

    address: str = ""
    content: bytes = CONTENT
    tag: str | None = '"one"'
    breaks: list[int] = field(default_factory=list)
    """After how many bytes each of the next answers is cut off."""
    statuses: list[int] = field(default_factory=list)
    """Of the next answers."""
    ranges: list[str | None] = field(default_factory=list)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers["Range"]
        self.ranges.append(asked)
        if handler.path != "/weights.pth":
            self.statuses.insert(0, 404)
        if self.statuses:
            handler.send_error(self.statuses.pop(0))
        elif asked and handler.headers["If-Range"] in (None, self.tag):
            self.send(handler, int(asked.removeprefix("bytes=").removesuffix("-")))
        else:
            self.send(handler, None)

    def send(self, handler: BaseHTTPRequestHandler, start: int | None) -> None:
        rest = self.content[start or 0 :]
        if not rest:
            handler.send_error(416)
            return
        handler.send_response(200 if start is None else 206)
        handler.send_header("Content-Length", str(len(rest)))
        if self.tag:
            handler.send_header("ETag", self.tag)
        handler.end_headers()
        handler.wfile.write(rest[: self.breaks.pop(0)] if self.breaks else rest)


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.answer(self)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        web.address = f"http://127.0.0.1:{server.server_address[1]}/weights.pth"
        yield web
        server.shutdown()
        thread.join()


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_arrives_whole(web: Web, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    out = tmp_path / "new" / "weights.pth"
    assert fetch(web.address, out, report=lambda done, total: seen.append((done, total))) == SHA256
    assert out.read_bytes() == CONTENT
    assert left(out.parent) == {"weights.pth"}
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_a_broken_connection_is_resumed(web: Web, tmp_path: Path) -> None:
    web.breaks = [1000, 0, 5000]
    assert fetch(web.address, tmp_path / "w", SHA256, attempts=AT_ONCE) == SHA256
    assert web.ranges == [None, "bytes=1000-", "bytes=1000-", "bytes=6000-"]
    assert left(tmp_path) == {"w"}


@pytest.mark.parametrize("tag", ['"one"', 'W/"one"', None])
def test_a_later_call_goes_on_where_the_last_one_gave_up(web: Web, tmp_path: Path, tag: str | None) -> None:
    web.tag, web.breaks = tag, [1000, 0, 0, 0]
    with pytest.raises(TransferFailed, match="goes on from byte 1000"):
        fetch(web.address, tmp_path / "w", attempts=AT_ONCE)
    assert not (tmp_path / "w").exists()
    web.breaks = []
    assert fetch(web.address, tmp_path / "w", attempts=AT_ONCE) == SHA256
    assert web.ranges[-1] == "bytes=1000-"


def test_versions_are_not_mixed(web: Web, tmp_path: Path) -> None:
    web.breaks = [1000, 0, 0, 0]
    with pytest.raises(TransferFailed):
        fetch(web.address, tmp_path / "w", attempts=AT_ONCE)
    web.breaks, web.content, web.tag = [], CONTENT[::-1], '"two"'
    fetch(web.address, tmp_path / "w", attempts=AT_ONCE)
    assert (tmp_path / "w").read_bytes() == CONTENT[::-1]


def test_what_arrived_from_another_address_is_not_gone_on_with(web: Web, tmp_path: Path) -> None:
    (tmp_path / "w.part").write_bytes(b"something else")
    (tmp_path / "w.part.json").write_text('{"url": "http://elsewhere/w", "version": null}')
    assert fetch(web.address, tmp_path / "w") == SHA256
    assert web.ranges == [None]


def test_a_part_that_is_too_long_is_begun_anew(web: Web, tmp_path: Path) -> None:
    web.tag, web.breaks = None, [1000, 0, 0, 0]
    with pytest.raises(TransferFailed):
        fetch(web.address, tmp_path / "w", attempts=AT_ONCE)
    web.breaks, web.content = [], CONTENT[:500]
    fetch(web.address, tmp_path / "w", attempts=AT_ONCE)
    assert (tmp_path / "w").read_bytes() == CONTENT[:500]


def test_a_busy_server_is_asked_again(web: Web, tmp_path: Path) -> None:
    web.statuses = [503, 429]
    assert fetch(web.address, tmp_path / "w", attempts=AT_ONCE) == SHA256
    web.statuses = [503] * 3
    with pytest.raises(TransferFailed, match="503"):
        fetch(web.address, tmp_path / "v", attempts=AT_ONCE)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_dead_link_is_told_at_once_and_with_what_to_try(web: Web, tmp_path: Path, status: int) -> None:
    web.statuses = [status]
    with pytest.raises(SourceGone, match=f"the server says {status}.* dead since 2025: try modelscope:"):
        fetch(web.address, tmp_path / "w", attempts=AT_ONCE)
    assert web.ranges == [None]
    assert left(tmp_path) == set()


def test_a_host_that_nobody_knows_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown(*arguments: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(SourceGone, match="cannot be had: its host is unknown, or this machine has no network"):
        fetch("http://gone.example/w.bin", tmp_path / "w", attempts=AT_ONCE)


def test_the_wrong_file_is_refused_and_what_was_there_stays(web: Web, tmp_path: Path) -> None:
    out = tmp_path / "w"
    out.write_bytes(b"old")
    with pytest.raises(WrongContent, match=f"its SHA-256 is {SHA256}, not {'0' * 64}"):
        fetch(web.address, out, "0" * 64, attempts=AT_ONCE)
    assert out.read_bytes() == b"old"
    assert left(tmp_path) == {"w"}


def test_a_file_with_the_wanted_hash_is_not_asked_for_again(web: Web, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(CONTENT)
    assert fetch(web.address, tmp_path / "w", SHA256.upper()) == SHA256
    assert web.ranges == []
    (tmp_path / "w").write_bytes(b"old")
    assert fetch(web.address, tmp_path / "w", SHA256) == SHA256


def test_a_path_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "kept.pth"
    source.write_bytes(CONTENT)
    assert fetch(str(source), tmp_path / "w", SHA256) == SHA256
    assert (tmp_path / "w").read_bytes() == source.read_bytes() == CONTENT
    with pytest.raises(WrongContent):
        fetch(str(source), tmp_path / "v", "0" * 64)
    assert left(tmp_path) == {"kept.pth", "w"}


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
    """As the HTTP clients of the hubs raise it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} not found\nRequest: GET ...")
        self.response = SimpleNamespace(status_code=status)


class Hub:
    """Both hubs' clients as far as they are used: they know one file."""

    asked: ClassVar[list[tuple[object, ...]]] = []
    cached: Path

    @classmethod
    def download(cls, repository: str, name: str, revision: str | None = None) -> str:
        cls.asked.append((repository, name, revision))
        if name == "lost.pth":
            raise HubFault(404)
        if name == "slow.pth":
            raise ConnectionError("cut off")
        return str(cls.cached)


@pytest.fixture(params=["hf", "modelscope"])
def hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    Hub.asked.clear()
    Hub.cached = tmp_path / "cached.pth"
    Hub.cached.write_bytes(CONTENT)

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


def test_the_command_prints_the_hash_or_one_line_of_error(web: Web, tmp_path: Path) -> None:
    out = tmp_path / "w"
    done = CliRunner().invoke(app, ["fetch", web.address, "--out", str(out)])
    assert (done.exit_code, done.output) == (0, f"{out}: SHA-256 {SHA256}\n")
    failed = CliRunner().invoke(app, ["fetch", web.address + "x", "--out", str(out)])
    assert failed.exit_code == 1
    assert failed.output.startswith("Error: ")
    assert "404" in failed.output
    assert failed.output.count("\n") == 1
