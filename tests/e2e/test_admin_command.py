"""`damoserve admin` against a real server."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from damoserve_client.cli import app
from damoserve_profiles.repository import BUNDLED
from damoserve_server.app import Application
from damoserve_server.settings import Settings

Admin = Callable[..., Result]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    profile = Path("blood-cells") / "1" / "int8+pruned"
    shutil.copytree(BUNDLED / profile, tmp_path / profile)
    return tmp_path


def run_all(repository: Path, *commands: tuple[object, ...]) -> list[Result]:
    """The commands one after the other, each beside the server's event loop."""

    async def scenario() -> list[Result]:
        settings = Settings(repository=repository, port=0, metrics_port=0, admin_port=0, workers=1)
        async with Application(settings) as application:
            address = ["--address", f"127.0.0.1:{application.admin_port}"]
            arguments = [["admin", *map(str, command), *address] for command in commands]
            return [await asyncio.to_thread(CliRunner().invoke, app, each) for each in arguments]

    return asyncio.run(scenario())


def test_every_command(repository: Path) -> None:
    results = run_all(
        repository,
        ("unload", "blood-cells", "int8+pruned"),
        ("load", "blood-cells", "int8+pruned"),
        ("alias", "blood-cells", "serving", 1),
        ("reload", "blood-cells", "--alias", "serving"),
        ("reload", "blood-cells", "--version", 1),
        ("models",),
    )
    assert [result.exit_code for result in results] == [0] * 6, [result.output for result in results]
    assert results[-1].stdout.split()[-4:] == ["blood-cells", "1", "1", "serving=1"]


def test_what_cannot_be_done_is_told(repository: Path) -> None:
    missing, both = run_all(
        repository,
        ("reload", "blood-cells", "--version", 2),
        ("reload", "blood-cells", "--version", 1, "--alias", "serving"),
    )
    assert (missing.exit_code, both.exit_code) == (1, 2)
    assert missing.stderr == "error: the model blood-cells has no version 2 [NOT_FOUND, VERSION_NOT_FOUND]\n"
