import json
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import typer
from PIL import Image, ImageColor
from typer.testing import CliRunner, Result

from damoserve_client.cli import add_commands, app
from damoserve_client.draw import colour_of
from tests.support.authority import Authority, replace
from tests.support.fake_server import FakeServer, refusal


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def box_is_drawn(path: Path) -> bool:
    with Image.open(path) as picture:
        return picture.convert("RGB").getpixel((40, 60)) == ImageColor.getrgb(colour_of(0))


def test_detect_prints_a_summary(server: FakeServer, smear_file: Path) -> None:
    result = run("detect", smear_file, "--address", server.address, "--tier", "realtime")
    assert result.exit_code == 0
    assert "2 RBC, 1 WBC" in result.stdout
    assert "most accurate in time" in " ".join(result.stdout.split())


def test_detect_passes_its_options(server: FakeServer, smear_file: Path) -> None:
    options = ["--profile", "int8", "--model", "blood-cells", "--budget-ms", "80", "--min-accuracy", "0.5"]
    assert run("detect", smear_file, "--address", server.address, *options, "--score", "0.25").exit_code == 0
    (request,) = server.service.requests
    assert (request.profile, request.model, request.latency_budget.ToMilliseconds()) == ("int8", "blood-cells", 80)
    assert (request.min_accuracy, request.score_threshold) == (0.5, 0.25)


def test_json_is_one_object_per_image(server: FakeServer, smear_file: Path) -> None:
    result = run("detect", smear_file, smear_file, "--address", server.address, "--json")
    first, second = map(json.loads, result.stdout.splitlines())
    assert first == second
    assert (first["image"], first["image_size"], first["profile"]) == (str(smear_file), [200, 150], "fp32")
    assert first["detections"][1] == {
        "label": "WBC",
        "label_id": 1,
        "score": 0.5,
        "box": {"x_min": 120, "y_min": 40, "x_max": 180, "y_max": 110},
    }
    assert first["timings"]["inference"] == 0.03


def test_save_to_a_file(server: FakeServer, smear_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    assert run("detect", smear_file, "--address", server.address, "--save", target).exit_code == 0
    assert box_is_drawn(target)
    assert not box_is_drawn(smear_file)


def test_save_several_to_a_folder(server: FakeServer, smear_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(smear_file.read_bytes())
    assert run("detect", smear_file, other, "--address", server.address, "--save", tmp_path / "new").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["other.png", "smear.png"]
    assert box_is_drawn(tmp_path / "new" / "other.png")


def test_save_overwrites_no_picture(server: FakeServer, smear_file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    namesake = tmp_path / "other" / smear_file.name
    namesake.write_bytes(smear_file.read_bytes())
    for images, save, complaint in (
        ([smear_file, namesake], tmp_path / "out.png", "need a folder"),
        ([smear_file, namesake], tmp_path / "out", "different names"),
        ([smear_file], smear_file, "overwrite"),
        ([smear_file], tmp_path, "overwrite"),
    ):
        result = run("detect", *images, "--address", server.address, "--save", save)
        assert result.exit_code == 2
        assert complaint in result.stderr
    assert server.service.requests == []


def test_a_broken_image_does_not_stop_the_others(server: FakeServer, smear_file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    result = run("detect", broken, smear_file, "--address", server.address, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["image"] == str(smear_file)
    assert result.stderr.startswith(f"error: {broken}: no [INVALID_ARGUMENT, IMAGE_UNDECODABLE]. Send a whole JPEG")


def test_an_error_is_one_line_with_its_cause_and_advice(server: FakeServer, smear_file: Path) -> None:
    server.service.refusals.append(refusal(grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND"))
    result = run("detect", smear_file, "--address", server.address)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == (
        "error: no [NOT_FOUND, PROFILE_NOT_FOUND]. `damoserve profiles` lists what the server has. Request request-7.\n"
    )


def test_no_server(unused_address: str) -> None:
    result = run("profiles", "--address", unused_address)
    assert result.exit_code == 1
    assert "UNAVAILABLE" in result.stderr
    assert result.stderr.count("\n") == 1


class TestSecurity:
    @pytest.fixture
    def files(self, tmp_path: Path) -> dict[str, Path]:
        authority = Authority()
        replace(tmp_path / "ca.crt", authority.certificate)
        return {"ca": tmp_path / "ca.crt", **authority.issue().write(tmp_path)}

    @pytest.fixture
    def secure(self, files: dict[str, Path]) -> Iterator[FakeServer]:
        """Wants a certificate of the authority."""
        pair = (files["key"].read_bytes(), files["certificate"].read_bytes())
        credentials = grpc.ssl_server_credentials([pair], files["ca"].read_bytes(), require_client_auth=True)
        with FakeServer(credentials=credentials) as running:
            yield running

    def test_mutual_tls(self, secure: FakeServer, files: dict[str, Path], smear_file: Path) -> None:
        address = ["--address", f"localhost:{secure.port}", "--ca", files["ca"]]
        mine = ["--cert", files["certificate"], "--key", files["key"]]
        for command in (["profiles"], ["detect", smear_file]):
            assert run(*command, *address, *mine).exit_code == 0
        assert run("profiles", *address).exit_code == 1
        assert run("profiles", "--address", f"localhost:{secure.port}", "--tls").exit_code == 1
        assert run("profiles", *address, "--cert", files["certificate"]).exit_code == 2

    def test_the_token_is_read_from_a_file_or_the_environment(
        self, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DAMOSERVE_TOKEN", "abc")
        assert run("profiles", "--address", server.address).exit_code == 0
        file = tmp_path / "token"
        file.write_text("def\n")
        assert run("profiles", "--address", server.address, "--token-file", file).exit_code == 0
        assert server.service.tokens == ["Bearer abc", "Bearer def"]

    def test_a_token_is_not_sent_in_plain_text(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DAMOSERVE_TOKEN", "s3cret")
        result = run("profiles", "--address", "gpu.example:50051")
        assert result.exit_code == 2
        assert "--tls" in result.stderr
        assert "s3cret" not in result.output


@pytest.mark.parametrize(
    "arguments", [["detect"], ["detect", "missing.png"], ["detect", __file__, "--tier", "instant"], ["demo", "missing"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_profiles(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAMOSERVE_ADDRESS", server.address)
    result = run("profiles")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["blood-cells/1", "int8", "active", "0.625", "0.875", "2.5", "2.20", "1.50", "12.0"] in rows
    assert "pruned failed: wrong hash" in result.stdout


def test_demo_needs_an_image_outside_the_source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("demo")
    assert result.exit_code == 2
    assert "give an image" in " ".join(result.stderr.replace("│", " ").split())


class TestAddedCommands:
    @pytest.fixture(autouse=True)
    def installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A distribution that brings two commands, of which `serve` lacks a module."""
        (tmp_path / "extra-1.dist-info").mkdir()
        (tmp_path / "extra-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1\n")
        (tmp_path / "extra-1.dist-info" / "entry_points.txt").write_text(
            "[damoserve.commands]\nserve = added_broken:serve\ngreet = added_greeting:greet\n"
        )
        (tmp_path / "added_broken.py").write_text("import a_module_that_is_not_installed\n")
        (tmp_path / "added_greeting.py").write_text(
            'def greet(name: str) -> None:\n    """Greet."""\n    print(f"hello {name}")\n'
        )
        # Instead of the search path: the project itself may be installed, with commands of these names.
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        return tmp_path

    def test_an_added_command_is_run(self) -> None:
        target = typer.Typer()
        add_commands(target, invoked="greet")
        assert CliRunner().invoke(target, ["greet", "you"]).stdout == "hello you\n"

    def test_help_lists_it_without_loading_it(self) -> None:
        target = typer.Typer()
        add_commands(target, invoked="--help")
        assert "serve" in CliRunner().invoke(target, ["--help"]).stdout
        assert "added_broken" not in sys.modules

    def test_a_missing_extra_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            add_commands(typer.Typer(), invoked="serve")
        assert ended.value.code == 1
        message = capsys.readouterr().err
        assert "pip install 'damoserve[server]'" in message
        assert "a_module_that_is_not_installed" in message
