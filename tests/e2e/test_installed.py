"""What a user gets from the wheels: installed into environments of their own, used from outside the source tree.

Needs a package index, and half a gigabyte: `make check-wheel`.
"""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.distributions import ROOT, build

pytestmark = [
    pytest.mark.skipif("DAMOSERVE_CHECK_WHEEL" not in os.environ, reason="installs packages: make check-wheel"),
    pytest.mark.timeout(1200),
]

PROFILES = {"fp32", "int8", "pruned", "int8+pruned"}
SIZE_LIMIT = 90_000_000
"""Bytes of a client with all that it needs, most of it gRPC and Pillow."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and an empty folder in which its commands run."""

    path: Path

    @classmethod
    def of(cls, path: Path, *requirements: str) -> "Environment":
        subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
        (path / "elsewhere").mkdir()
        made = cls(path)
        made.install(*requirements)
        return made

    def install(self, *requirements: str) -> None:
        options = ["install", "--quiet", "--disable-pip-version-check", "--constraint", str(ROOT / "constraints.txt")]
        self.run("pip", *options, *requirements, check=True)

    def run(self, name: str, *arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        command = self._command(name, *arguments)
        return subprocess.run(
            command, check=check, capture_output=True, text=True, cwd=self._elsewhere, env=self._environment
        )

    @contextmanager
    def running(self, name: str, *arguments: str) -> Iterator[str]:
        """The first line that a program prints, as long as it runs."""
        command = self._command(name, *arguments)
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=self._elsewhere, env=self._environment
        ) as process:
            try:
                assert process.stdout is not None
                yield process.stdout.readline()
            finally:
                process.terminate()

    def bytes(self) -> int:
        """Of all packages but the installer's."""
        (packages,) = self.path.glob("lib/python*/site-packages")
        files = (path for path in packages.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        installers = ("pip", "setuptools", "_distutils_hack", "pkg_resources")
        return sum(
            path.stat().st_size for path in files if not path.relative_to(packages).parts[0].startswith(installers)
        )

    def _command(self, name: str, *arguments: str) -> list[str]:
        return [str(self.path / "bin" / name), *arguments]

    @property
    def _elsewhere(self) -> Path:
        return self.path / "elsewhere"

    @property
    def _environment(self) -> dict[str, str]:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("DAMOSERVE", "PYTHON"))
        }
        return environment | {"PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The base and the models."""
    folder = tmp_path_factory.mktemp("wheels")
    return build(ROOT, "wheel", folder / "base"), build(ROOT / "profiles", "wheel", folder / "models")


@pytest.fixture(scope="module")
def client(wheels: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment.of(tmp_path_factory.mktemp("client") / "venv", str(wheels[0]))


@pytest.fixture(scope="module")
def server(wheels: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    base, models = wheels
    return Environment.of(tmp_path_factory.mktemp("server") / "venv", f"{base}[server,playground]", str(models))


@pytest.fixture(scope="module")
def address(server: Environment) -> Iterator[str]:
    with server.running("damoserve", "serve", "--port", "0", "--metrics-port", "0") as line:
        found = re.search(r"serving .* on (\S+:\d+), metrics", line)
        assert found, line
        yield found[1]


def test_a_client_is_light_and_says_its_version(client: Environment) -> None:
    assert re.fullmatch(r"damoserve \d+\.\d+\.\d+\n", client.run("damoserve", "--version").stdout)
    size = client.bytes()
    print(f"\na client with what it needs: {size / 1e6:.1f} MB")
    assert size < SIZE_LIMIT


def test_a_client_calls_a_server(client: Environment, address: str) -> None:
    listed = client.run("damoserve", "profiles", "--address", address, check=True)
    assert {word for word in listed.stdout.split() if word in PROFILES} == PROFILES
    picture = client.run("python", "-c", "from damoserve_client.sample import SAMPLE; print(SAMPLE)").stdout.strip()
    assert not Path(picture).is_relative_to(ROOT)
    found = client.run("damoserve", "detect", picture, "--address", address, "--json", check=True)
    assert len(json.loads(found.stdout)["detections"]) > 5


@pytest.mark.parametrize("command", ["serve", "demo", "playground"])
def test_a_client_alone_says_what_else_to_install(client: Environment, command: str) -> None:
    result = client.run("damoserve", command)
    assert result.returncode == 1
    assert "pip install 'damoserve[" in result.stderr


def test_the_demo_needs_nothing_but_the_wheels(server: Environment) -> None:
    result = server.run("damoserve", "demo")
    assert result.returncode == 0, result.stderr
    assert {line.split()[0] for line in result.stdout.splitlines() if line.strip()} >= PROFILES
    assert (server.path / "elsewhere" / "demo" / "profiles.png").is_file()


def test_the_playground_finds_what_it_shows(server: Environment, address: str) -> None:
    with server.running("damoserve", "playground", "--server", address, "--port", "0") as line:
        found = re.search(r"http://\S+", line)
        assert found, line
        with urllib.request.urlopen(found[0], timeout=60) as answer:
            assert b"damoserve" in answer.read()


def test_a_server_without_models_says_what_to_install(server: Environment, wheels: tuple[Path, Path]) -> None:
    server.run("pip", "uninstall", "--yes", "damoserve-models", check=True)
    try:
        result = server.run("damoserve", "serve", "--port", "0", "--metrics-port", "0")
    finally:
        server.install(str(wheels[1]))
    assert result.returncode == 1
    assert "pip install damoserve-models" in result.stderr
    assert "--repository" in result.stderr
