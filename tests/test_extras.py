"""The commands in an install that lacks their extra: one line that says what to install, never a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

PROFILES = ("cv2", "numpy", "pydantic", "yaml")
SERVER = (
    *PROFILES,
    "grpc_health",
    "grpc_reflection",
    "onnxruntime",
    "prometheus_client",
    "pydantic_settings",
    "uvloop",
)
COMPRESS = (*PROFILES, "hotcoco", "jinja2", "matplotlib", "onnx", "onnxruntime", "safetensors", "torch")
PLAYGROUND = ("fastapi", "nicegui", "starlette", "uvicorn")


def without(missing: tuple[str, ...], entry_point: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs what an installed command runs, in a Python where these modules are not found."""
    module, _, function = entry_point.partition(":")
    script = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name in {missing!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        f"from {module} import {function}\n"
        f"sys.exit({function}())\n"
    )
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def says(result: subprocess.CompletedProcess[str], extra: str) -> bool:
    [line] = result.stderr.splitlines()
    return result.returncode == 1 and f"pip install 'damoserve[{extra}]'" in line


@pytest.mark.parametrize("arguments", [["--help"], [], ["train"], ["advise", "--help"]])
def test_the_compress_command_says_what_to_install(arguments: list[str]) -> None:
    assert says(without(COMPRESS, "damoserve_compress.cli:main", *arguments), "compress")


@pytest.mark.parametrize("arguments", [["--help"], ["build", "--help"]])
def test_with_the_server_alone_the_compress_command_has_its_help(arguments: list[str]) -> None:
    only_compress = tuple(name for name in COMPRESS if name not in SERVER)
    result = without(only_compress, "damoserve_compress.cli:main", *arguments)
    assert result.returncode == 0, result.stderr


def test_with_the_server_alone_training_says_what_to_install(tmp_path: Path) -> None:
    arguments = ["train", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--model", "any"]
    assert says(without(("torch",), "damoserve_compress.cli:main", *arguments), "compress")


def test_a_fault_of_our_own_keeps_its_traceback() -> None:
    result = without(("damoserve_compress.commands",), "damoserve_compress.cli:main", "--help")
    assert "Traceback" in result.stderr
    assert "pip install" not in result.stderr


@pytest.mark.parametrize("arguments", [["serve"], ["serve", "--help"]])
def test_serving_says_what_to_install(arguments: list[str]) -> None:
    assert says(without(SERVER, "damoserve_client.cli:main", *arguments), "server")


def test_the_server_by_itself_says_what_to_install() -> None:
    assert says(without(SERVER, "damoserve_server.__main__:serve"), "server")


@pytest.mark.parametrize("arguments", [["playground"], ["playground", "--help"]])
def test_the_playground_says_what_to_install(arguments: list[str]) -> None:
    assert says(without(PLAYGROUND, "damoserve_client.cli:main", *arguments), "playground")


def test_top_says_what_to_install() -> None:
    assert says(without(("prometheus_client",), "damoserve_client.cli:main", "top", "--once"), "top")


def test_the_help_of_the_client_needs_no_extra() -> None:
    result = without((*SERVER, *COMPRESS, *PLAYGROUND), "damoserve_client.cli:main", "--help")
    assert result.returncode == 0, result.stderr
    assert "serve" in result.stdout
