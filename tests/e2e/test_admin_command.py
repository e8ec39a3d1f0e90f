"""`damoserve admin` against a real server."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from damoserve_client.cli import app
from damoserve_profiles.repository import BUNDLED
from damoserve_server.app import Application
from damoserve_server.configuration.settings import Settings

Admin = Callable[..., Result]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    profile = Path("blood-cells") / "1" / "int8+pruned"
    shutil.copytree(BUNDLED / profile, tmp_path / profile)
    return tmp_path


def run_all(repository: Path, *commands: tuple[object, ...], **settings: Any) -> list[Result]:
    """The commands one after the other, each beside the server's event loop."""

    async def scenario() -> list[Result]:
        given = {"repository": repository, "port": 0, "metrics_port": 0, "admin_port": 0, "workers": 1, **settings}
        async with Application(Settings(**given)) as application:
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


def test_a_server_with_tokens_wants_one_with_the_right(repository: Path, tmp_path: Path) -> None:
    names = {"camera": ["detect"], "operator": ["admin"]}
    entries = [{"name": name, "token": name * 8, "rights": rights} for name, rights in names.items()]
    (tmp_path / "tokens.yaml").write_text(yaml.safe_dump({"tokens": entries}))
    for name in names:
        (tmp_path / name).write_text(f"{name * 8}\n")
    nobody, camera, operator = run_all(
        repository,
        ("models",),
        ("--token-file", tmp_path / "camera", "models"),
        ("--token-file", tmp_path / "operator", "models"),
        access={"tokens": tmp_path / "tokens.yaml"},
    )
    assert (nobody.exit_code, camera.exit_code, operator.exit_code) == (1, 1, 0)
    assert "TOKEN_MISSING" in nobody.stderr
    assert "PERMISSION_DENIED" in camera.stderr
    assert "blood-cells" in operator.stdout
