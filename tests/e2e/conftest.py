"""A server in a process of its own, as an operator starts it."""

from collections.abc import Iterator

import pytest

from damoserve_client import Client
from tests.support.process import RunningServer, StartServer, run_server
from tests.support.timeouts import PROCESS_TIMEOUT


@pytest.fixture(scope="session")
def start_server() -> StartServer:
    return run_server


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """The bundled model, shared by the tests that leave it as it is."""
    with run_server() as running:
        yield running


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Iterator[Client]:
    # Tests wait for the machine, however busy it is.
    with Client(server.address, timeout=PROCESS_TIMEOUT) as connected:
        yield connected
