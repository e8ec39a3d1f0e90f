"""A folder of models that cannot be used: the server says in one line what is wrong with it and what to do."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from damoserve_server.models.catalogue import CatalogueError
from tests.support.server import MakeApplication

NOBODY = 65534


def failure(application: MakeApplication, root: Path) -> str:
    async def scenario() -> None:
        async with application(repository=root):
            pass

    with pytest.raises(CatalogueError) as caught:
        asyncio.run(scenario())
    message = str(caught.value)
    assert "\n" not in message
    assert "<model>/<version>/<profile>/manifest.json" in message
    return message


def test_a_folder_that_does_not_exist(application: MakeApplication, tmp_path: Path) -> None:
    root = tmp_path / "nowhere"
    assert failure(application, root).startswith(f"the repository {root} does not exist: ")


def test_a_file(application: MakeApplication, tmp_path: Path) -> None:
    root = tmp_path / "model.onnx"
    root.write_bytes(b"")
    assert failure(application, root).startswith(f"the repository {root} is not a folder: ")


def test_an_empty_folder(application: MakeApplication, tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    assert failure(application, root).startswith(f"the repository {root} is empty: ")


@pytest.mark.parametrize("below", ["colours", "colours/3", "colours/3/quick"])
def test_a_folder_within_the_repository(application: MakeApplication, repository: Path, below: str) -> None:
    root = repository / below
    assert failure(application, root).startswith(f"the repository {root} has no model in it: ")


@pytest.mark.parametrize("below", [".", "colours"])
def test_a_folder_that_may_not_be_read(application: MakeApplication, repository: Path, below: str) -> None:
    closed = repository / below
    closed.chmod(0)
    try:
        with _unprivileged():
            message = failure(application, repository)
    finally:
        closed.chmod(0o700)
    assert message.startswith(f"the repository {repository} cannot be read: ")


@contextmanager
def _unprivileged() -> Iterator[None]:
    """Root may read everything, so where it runs the tests somebody else has to try."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_version_without_a_profile(application: MakeApplication, tmp_path: Path) -> None:
    (tmp_path / "models/colours/1").mkdir(parents=True)

    async def scenario() -> None:
        async with application(repository=tmp_path / "models"):
            pass

    with pytest.raises(CatalogueError, match="no version in the repository has one"):
        asyncio.run(scenario())
