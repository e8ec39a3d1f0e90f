"""What `damoserve serve` says to an operator who got a setting wrong: one line, with the place and the remedy."""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from damoserve_server.cli import serve
from damoserve_server.telemetry.settings import LogLevel

ROOT = Path(__file__).parents[3]
START = "damoserve cannot start: "
Refusal = Callable[..., str]
WriteFile = Callable[[str], Path]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("DAMOSERVE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def refusal(tmp_path: Path) -> Refusal:
    """Why the command does not start with these options; if nothing else is wrong, its repository does not exist."""
    app = typer.Typer()
    app.command()(serve)

    def told(*options: object) -> str:
        arguments: dict[object, object] = {"--repository": tmp_path / "nowhere", "--port": 0, "--metrics-port": 0}
        arguments |= dict(zip(options[::2], options[1::2], strict=True))
        result = CliRunner().invoke(app, [str(part) for pair in arguments.items() for part in pair])
        assert result.exit_code == 1
        [line] = result.stderr.splitlines()
        assert line.startswith(START)
        return line.removeprefix(START)

    return told


@pytest.fixture
def file(tmp_path: Path) -> WriteFile:
    def write(content: str) -> Path:
        path = tmp_path / "damoserve.yaml"
        path.write_text(content)
        return path

    return write


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prot: 1", "prot is not a setting: did you mean port?"),
        ("Max_Queue: 0", "max_queue: Input should be greater than 0 (given: 0)"),
        ("tiers: {realtme: {objective_ms: 1}}", "tiers.realtme is not a setting: did you mean tiers.realtime?"),
        (
            "tiers: {realtime: {objectiv_ms: 1}}",
            "tiers.realtime.objectiv_ms is not a setting: did you mean tiers.realtime.objective_ms?",
        ),
        ("tls: {certificat: a, key: b}", "tls.certificat is not a setting: did you mean tls.certificate?"),
        ("certificate: a", "certificate is not a setting: did you mean tls.certificate?"),
        ("fidelity: {qqq: 1}", "fidelity.qqq is not a setting; there are kept_images, reference, share"),
        ("qqq: 1", "qqq is not a setting"),
        (
            "max_queue: many",
            "max_queue: Input should be a valid integer, unable to parse string as an integer (given: many)",
        ),
        (
            "tiers: {accurate: {objective_ms: 0}}",
            "tiers.accurate.objective_ms: Input should be greater than 0 (given: 0)",
        ),
        ("tls: {key: a}", "tls.certificate: Field required"),
        ("max_image_bytes: 99999999", "max_image_bytes: max_message_bytes must be larger than max_image_bytes"),
        ("tiers: {1: 2}", "tiers.1: Keys should be strings (given: 1)"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_file_key_and_remedy(
    refusal: Refusal, file: WriteFile, content: str, message: str
) -> None:
    path = file(content)
    assert refusal("--config", path) == f"{path}: {message}"


def test_all_mistakes_are_told_at_once(refusal: Refusal, file: WriteFile) -> None:
    path = file("prot: 1\nmax_queue: many")
    told = refusal("--config", path).split("; ")
    assert [mistake.split(" ")[:2] for mistake in sorted(told)] == [[f"{path}:", "max_queue:"], [f"{path}:", "prot"]]


@pytest.mark.parametrize("content", ["port: [1", "- 1", "hello", "1: 2"])
def test_a_file_without_settings_is_named(refusal: Refusal, file: WriteFile, content: str) -> None:
    path = file(content)
    assert refusal("--config", path).startswith(f"{path} is not a YAML file of settings: ")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DAMOSERVE_PORT", "x", "DAMOSERVE_PORT: Input should be a valid integer"),
        ("DAMOSERVE_PROVIDERS", "CUDA", "DAMOSERVE_PROVIDERS is not JSON, "),
        ("DAMOSERVE_CONFIG", "/nowhere", "DAMOSERVE_CONFIG: Path does not point to a file (given: /nowhere)"),
        (
            "DAMOSERVE_TIERS__REALTME__OBJECTIVE_MS",
            "1",
            "DAMOSERVE_TIERS__REALTME__OBJECTIVE_MS is not a setting: did you mean "
            "DAMOSERVE_TIERS__REALTIME__OBJECTIVE_MS?",
        ),
        (
            "DAMOSERVE_TIERS",
            '{"realtme": 1}',
            "DAMOSERVE_TIERS: realtme is not a setting: did you mean tiers.realtime?",
        ),
        ("DAMOSERVE_TLS__KEY", "a", "DAMOSERVE_TLS__CERTIFICATE: Field required"),
        ("DAMOSERVE_ACCESS__TOKENS", "/nowhere", "DAMOSERVE_ACCESS__TOKENS: /nowhere cannot be read"),
    ],
)
def test_a_mistake_in_the_environment_is_told_with_its_variable(
    refusal: Refusal, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    app = typer.Typer()
    app.command()(serve)
    result = CliRunner().invoke(app)
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith(START + message)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--port", "abc", "--port: Input should be a valid integer"),
        ("--port", "70000", "--port: Input should be less than or equal to 65535 (given: 70000)"),
        ("--metrics-port", "-1", "--metrics-port: Input should be greater than or equal to 0 (given: -1)"),
        ("--log-level", "loud", "--log-level: Input should be 'debug', 'info', 'warning' or 'error' (given: loud)"),
        ("--config", "/nowhere", "--config: Path does not point to a file (given: /nowhere)"),
        ("--repository", "/nowhere", "the repository /nowhere does not exist: "),
    ],
)
def test_a_wrong_option_is_told_as_such(refusal: Refusal, option: str, value: str, message: str) -> None:
    assert refusal(option, value).startswith(message)


def test_a_long_value_is_cut(refusal: Refusal) -> None:
    assert len(refusal("--port", "9" * 5000)) < 300


def test_options_before_variables_before_the_file_are_to_blame(
    refusal: Refusal, file: WriteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file("port: wrong\nmax_queue: wrong")
    monkeypatch.setenv("DAMOSERVE_MAX_QUEUE", "wrong, too")
    told = refusal("--config", path, "--port", "wrong as well")
    assert told.startswith("--port: ")
    assert "; DAMOSERVE_MAX_QUEUE: " in told


def test_the_help_names_what_each_option_takes() -> None:
    app = typer.Typer()
    app.command()(serve)
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout
    for words in ("--port NUMBER", "--repository FOLDER", f"--log-level {'|'.join(LogLevel)}", "docs/settings.md"):
        assert words in " ".join(shown.split())


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line.message for line in caplog.records if line.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("DAMOSERVE_PORTT", ": did you mean DAMOSERVE_PORT?"),
        ("damoserve_hst", ": did you mean DAMOSERVE_HOST?"),
        ("DAMOSERVE_MAX_QUEU", ": did you mean DAMOSERVE_MAX_QUEUE?"),
        ("DAMOSERVE_TLS_KEY", ": did you mean DAMOSERVE_TLS__KEY?"),
        ("DAMOSERVE_TIER__REALTIME__OBJECTIVE_MS", ": did you mean DAMOSERVE_TIERS__REALTIME__OBJECTIVE_MS?"),
        ("DAMOSERVE_XQZ", ""),
    ],
)
def test_an_unknown_variable_is_warned_of(
    refusal: Refusal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, advice: str
) -> None:
    monkeypatch.setenv(name, "1")
    refusal()
    assert warnings(caplog) == [f"{name} is not a setting and has no effect{advice}"]


VARIABLE = re.compile(r"\bDAMOSERVE_[A-Z][A-Z_]*[A-Z]\b")


def test_what_other_parts_of_the_project_read_is_not_warned_of(
    refusal: Refusal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sources = [
        path
        for folder in ("clients", "compress", "profiles", "benchmarks", "tests", "deploy")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".yaml", ".sh"} and path != Path(__file__)
    ]
    settings = set(VARIABLE.findall((ROOT / "docs/settings.md").read_text()))
    used = {name for path in [ROOT / "Makefile", *sources] for name in VARIABLE.findall(path.read_text())} - settings
    assert {"DAMOSERVE_ADDRESS", "DAMOSERVE_METRICS", "DAMOSERVE_SCREENSHOTS"} <= used
    for name in used | {"DAMOSERVE_DATA", "DAMOSERVE_TOKEN", "DAMOSERVE_SERVICE_HOST", "DAMOSERVE_PORT_50051_TCP_ADDR"}:
        monkeypatch.setenv(name, "1")
    refusal()
    assert warnings(caplog) == []
