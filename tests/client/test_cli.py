import io
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import grpc
import pytest
import typer
from PIL import Image, ImageColor
from typer.testing import CliRunner, Result

from damoserve.v1 import detection_pb2 as pb
from damoserve_client import cli
from damoserve_client.cli import add_commands, app
from damoserve_client.draw import colour_of
from tests.support.authority import Authority, replace
from tests.support.fake_server import FakeServer, Refusal, profile, refusal


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


class TestUnreadablePictures:
    @pytest.fixture
    def pictures(self, tmp_path: Path) -> Path:
        jpeg, gif = io.BytesIO(), io.BytesIO()
        noise = Image.effect_noise((300, 200), 80)
        noise.save(jpeg, "JPEG")
        noise.save(gif, "GIF")
        png = io.BytesIO()
        noise.save(png, "PNG")
        contents = {"cut.jpg": jpeg.getvalue()[:-2000], "cut.png": png.getvalue()[:-2000], "notes.txt": b"no picture"}
        for name, content in {**contents, "moving.gif": gif.getvalue(), "empty.png": b""}.items():
            (tmp_path / name).write_bytes(content)
        (tmp_path / "folder").mkdir()
        return tmp_path

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("missing.png", "there is no such file"),
            ("folder", "this is a folder; give the pictures in it"),
            ("notes.txt", "this is not a picture; send a JPEG, PNG, WebP or BMP file"),
            ("moving.gif", "this is not a picture; send a JPEG, PNG, WebP or BMP file"),
            ("empty.png", "the file is empty"),
            ("cut.jpg", "the picture is damaged or cut short (image file is truncated"),
            ("cut.png", "the picture is damaged or cut short (image file is truncated"),
        ],
    )
    def test_are_told_in_a_line_before_anything_is_sent(
        self, pictures: Path, unused_address: str, name: str, reason: str
    ) -> None:
        result = run("detect", pictures / name, "--address", unused_address, "--save", pictures / "out")
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {pictures / name}: {reason}")
        assert result.stderr.count("\n") == 1
        assert not (pictures / "out").exists()

    def test_do_not_stop_the_others(self, server: FakeServer, smear_file: Path, pictures: Path) -> None:
        result = run("detect", pictures / "notes.txt", smear_file, "--address", server.address, "--json")
        assert result.exit_code == 2
        assert json.loads(result.stdout)["image"] == str(smear_file)
        assert result.stderr.count("\n") == 1

    def test_whole_pictures_of_every_format_are_sent(self, server: FakeServer, tmp_path: Path) -> None:
        files = [tmp_path / f"noise.{kind}" for kind in ("jpg", "png", "webp", "bmp")]
        for file in files:
            Image.effect_noise((30, 4), 80).save(file)
        assert run("detect", *files, "--address", server.address).exit_code == 0
        assert [request.image.content for request in server.service.requests] == [file.read_bytes() for file in files]

    def test_a_pipe_is_read_once(self, server: FakeServer, smear: bytes, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        with ThreadPoolExecutor(1) as pool:
            written = pool.submit(pipe.write_bytes, smear)
            assert run("detect", pipe, "--address", server.address).exit_code == 0
            written.result()

    def test_one_that_the_server_refuses_does_not_stop_the_others(self, server: FakeServer, smear_file: Path) -> None:
        server.service.refusals.append(refusal(grpc.StatusCode.INVALID_ARGUMENT, "IMAGE_TOO_LARGE"))
        result = run("detect", smear_file, smear_file, "--address", server.address, "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["image"] == str(smear_file)
        assert result.stderr.startswith(f"error: {smear_file}: no [INVALID_ARGUMENT, IMAGE_TOO_LARGE]. Send a whole")


def test_a_wrong_tier_is_answered_with_the_right_ones(smear_file: Path) -> None:
    result = run("detect", smear_file, "--tier", "fast")
    assert result.exit_code == 2
    said = " ".join(result.stderr.replace("│", " ").split())
    assert "'fast' is not one of 'realtime', 'balanced', 'accurate'" in said


class TestNamesThatMoveTheCursor:
    """Escape sequences, line breaks, turned text and rich's markup, wherever a server can put them."""

    NAME = "\x1b[2J\x9b1mR\rB\nC\u202e[red]x[/]:smile:"
    SHOWN = r"\x1b[2J\x9b1mR\rB\nC\u202e[red]x[/]:smile:"

    @pytest.fixture(autouse=True)
    def named(self, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("DAMOSERVE_ADDRESS", server.address)
        failed = profile("int8", pb.Profile.STATE_FAILED, error=self.NAME)
        server.service.profiles = (profile(self.NAME), failed)
        server.service.detections = tuple(pb.Detection(label=self.NAME, score=0.5) for _ in range(2))

    @staticmethod
    def is_plain(output: str) -> bool:
        return all(each.isprintable() for each in output.splitlines()) and "\r" not in output

    def test_in_what_was_found(self, smear_file: Path, tmp_path: Path) -> None:
        result = run("detect", smear_file, "--profile", self.NAME, "--save", tmp_path / "out.png")
        assert result.exit_code == 0
        assert self.is_plain(result.output)
        assert result.output.count(self.SHOWN) == 4  # two rows, the count, and the profile

    def test_in_the_profiles(self) -> None:
        result = run("profiles")
        assert self.is_plain(result.output)
        assert result.output.count(self.SHOWN) == 2

    def test_in_an_error(self, server: FakeServer) -> None:
        server.service.refusals.append(Refusal(grpc.StatusCode.NOT_FOUND, self.NAME))
        result = run("profiles")
        assert result.exit_code == 1
        assert self.is_plain(result.output)
        assert result.stderr.startswith(f"error: {self.SHOWN} [NOT_FOUND]")

    def test_in_the_name_of_a_file(self, tmp_path: Path) -> None:
        result = run("detect", tmp_path / "\x1b[2J.png")
        assert self.is_plain(result.output)


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


def test_demo_needs_an_image_where_none_was_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "SAMPLE", tmp_path / "smear.jpg")
    result = run("demo")
    assert result.exit_code == 2
    assert "this install has no picture of its own" in " ".join(result.stderr.replace("│", " ").split())


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"damoserve {version('damoserve')}\n")


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
