"""How much an idle server shows to Prometheus, which keeps all of it for weeks."""

import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.support.process import RunningServer
from tests.support.timeouts import PROCESS_TIMEOUT

MOST_BYTES = 100_000


@pytest.fixture(scope="module")
def idle(start_server: Callable[..., AbstractContextManager[RunningServer]]) -> Iterator[Callable[[str], bytes]]:
    """What a server with the bundled model, of which nothing was asked yet, shows in a format."""
    with start_server() as server:

        def scrape(accept: str) -> bytes:
            request = urllib.request.Request(server.metrics, headers={"Accept": accept})
            with urllib.request.urlopen(request, timeout=PROCESS_TIMEOUT) as response:
                content: bytes = response.read()
            return content

        yield scrape


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
def test_a_scrape_of_an_idle_server_is_small(idle: Callable[[str], bytes], accept: str) -> None:
    shown = idle(accept)
    assert len(shown) < MOST_BYTES
    for served in ("fp32", "int8", "pruned", "int8+pruned"):
        assert f'profile="{served}"'.encode() in shown
