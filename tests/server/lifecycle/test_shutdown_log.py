"""What the log says of a stop: what was inside, and what became of it."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.pictures import Pictures
from tests.support.server import MakeApplication, Serve, connected
from tests.support.valve import Valve

TIMEOUT = 20.0

Told = Callable[[], list[tuple[str, dict[str, Any]]]]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    """The message and the fields of what was logged about stops."""
    caplog.set_level(logging.INFO)
    name = "damoserve_server.lifecycle.shutdown"
    return lambda: [(line.message, vars(line)["fields"]) for line in caplog.records if line.name == name]


async def test_accepted_requests_are_answered_and_later_ones_refused(
    application: MakeApplication, pictures: Pictures, valve: Valve, told: Told
) -> None:
    server = application(valve.load, max_batch_size=1)
    async with server, connected(server) as client:
        await client.detect(pictures.red)
        valve.shut()
        calls = [asyncio.ensure_future(client.detect(pictures.red)) for _ in range(3)]
        await client.until(lambda now: now.sum("damoserve_requests_in_flight") == 3)
        await client.until(lambda now: now.sum("damoserve_queued_requests") == 2)
        server.log_stop("SIGTERM")
        stopping = asyncio.ensure_future(server.stop())
        while await client.health() == "SERVING":
            pass
        await client.failure(client.detect(pictures.red))
        valve.open()
        await asyncio.gather(*calls)
        await stopping
    (begun, at_first), (ended, at_last) = told()
    assert (begun, at_first) == ("stopping", {"signal": "SIGTERM", "requests_inside": 3})
    assert ended == "stopped"
    assert 0 < at_last.pop("seconds") < TIMEOUT
    assert at_last == {"answered": 3, "refused": 1, "abandoned": 0, "failed": 0}


async def test_what_the_drain_cannot_wait_for_is_refused_or_abandoned(
    application: MakeApplication, pictures: Pictures, valve: Valve, told: Told
) -> None:
    server = application(valve.load, max_batch_size=1, drain_seconds=0)
    async with server, connected(server) as client:
        valve.shut()
        calls = [asyncio.ensure_future(client.detect(pictures.red)) for _ in range(2)]
        await client.until(lambda now: now.sum("damoserve_requests_in_flight") == 2)
        await client.until(lambda now: now.sum("damoserve_queued_requests") == 1)
        server.log_stop("SIGINT")
        stopping = asyncio.ensure_future(server.stop())
        for call in calls:
            await client.failure(call)
        valve.open()
        await stopping
    (_, at_first), (_, at_last) = told()
    assert at_first == {"signal": "SIGINT", "requests_inside": 2}
    at_last.pop("seconds")
    assert at_last == {"answered": 0, "refused": 1, "abandoned": 1, "failed": 0}


async def test_a_stop_is_told_once(application: MakeApplication, told: Told) -> None:
    server = application()
    async with server:
        server.log_stop("SIGTERM")
        server.log_stop("SIGINT")
        await server.stop()
    assert [message for message, _ in told()] == ["stopping", "stopped"]


async def test_a_server_that_nobody_told_to_stop_says_nothing(serve: Serve, told: Told) -> None:
    async with serve():
        pass
    assert told() == []
