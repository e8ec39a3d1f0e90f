"""A repository of tiny real ONNX models, and a real server in this process, for the tests of every room."""

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from socketserver import BaseServer
from typing import Any

import pytest

from damoserve_server import app
from damoserve_server.engines.onnxruntime import OnnxRuntimeEngine
from tests.support.pictures import Pictures
from tests.support.quarters import add_profile
from tests.support.server import MakeApplication, Serve, ServerClient, connected, make_application
from tests.support.valve import Valve


@pytest.fixture(autouse=True)
def quick_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metrics server looks every half second whether it is to stop, and the port stays open for calls on their way.

    Tests need not wait so long.
    """
    monkeypatch.setattr(BaseServer.serve_forever, "__defaults__", (0.01,))
    monkeypatch.setattr(app, "LAST_CALLS_SECONDS", 0.0)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    add_profile(root, "accurate", ap=0.6)
    add_profile(root, "quick", ap=0.4)
    return root


@pytest.fixture
def repository(pristine: Path, tmp_path: Path) -> Path:
    """A repository of its own for each test: the model `colours`, version 3, profiles `accurate` and `quick`."""
    return Path(shutil.copytree(pristine, tmp_path / "repository"))


@pytest.fixture
def new_profile() -> Callable[..., None]:
    return add_profile


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    return Pictures()


@pytest.fixture
def valve() -> Iterator[Valve]:
    valve = Valve()
    yield valve
    valve.open()


@pytest.fixture
def serve(repository: Path) -> Serve:
    """`async with serve(max_queue=2) as client`: a server with these settings, and a client."""

    @asynccontextmanager
    async def running(load_engine: Any = OnnxRuntimeEngine, **settings: Any) -> AsyncIterator[ServerClient]:
        application = make_application(repository, load_engine, **settings)
        async with application, connected(application) as client:
            yield client

    return running


@pytest.fixture
def application(repository: Path) -> MakeApplication:
    """Makes an application that is not started yet."""
    return partial(make_application, repository)
