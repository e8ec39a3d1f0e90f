"""The limits of one connection, as clients feel them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from pydantic import ValidationError

from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_server.configuration.settings import Settings
from tests.support.pictures import Pictures
from tests.support.server import Serve, ServerClient
from tests.support.timeouts import TIMEOUT
from tests.support.valve import Valve

EAGER = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 10),
    ("grpc.http2.max_pings_without_data", 0),
]
"""A client that asks every ten milliseconds whether the server is still there."""


@asynccontextmanager
async def held_call(
    client: ServerClient, image: bytes, valve: Valve
) -> AsyncIterator["grpc.aio.UnaryUnaryCall[pb.DetectRequest, pb.DetectResponse]"]:
    """A call that the engine holds up, over a connection that pings."""
    valve.shut()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{client.application.port}", EAGER) as channel:
        request = pb.DetectRequest(image=pb.Image(content=image))
        call = pb_grpc.DetectionServiceStub(channel).Detect(request, timeout=TIMEOUT)
        await valve.entered()
        yield call
        valve.open()


async def test_a_connection_that_has_its_calls_open_holds_back_the_next(
    serve: Serve, pictures: Pictures, valve: Valve
) -> None:
    """Without this limit the second call would reach the server, which takes only one at a time, and be refused."""
    async with serve(valve.load, connections={"max_streams": 1}, max_concurrent_calls=1) as client:
        valve.shut()
        calls = [asyncio.ensure_future(client.detect(pictures.red)) for _ in range(2)]
        await valve.entered()
        valve.open()
        result = [len((await call).detections) for call in calls]
    assert result == [4, 4]


async def test_a_client_that_pings_more_often_than_it_may_loses_its_connection(
    serve: Serve, pictures: Pictures, valve: Valve
) -> None:
    """The lenient server has been pinged for longer when the strict one loses its patience."""
    async with (
        serve(valve.load, connections={"min_ping_interval_seconds": 0}) as lenient,
        serve(valve.load, connections={"min_ping_interval_seconds": 300}) as strict,
        held_call(lenient, pictures.red, valve) as kept,
        held_call(strict, pictures.red, valve) as lost,
    ):
        failure = await strict.failure(lost)
        assert not kept.done()
        valve.open()
        found = len((await kept).detections)
    assert (failure.code, failure.message) == (grpc.StatusCode.UNAVAILABLE, "Too many pings")
    assert found == 4


@pytest.mark.parametrize("name", ["keepalive_seconds", "max_age_seconds", "max_streams"])
def test_limits_must_be_positive(name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings(connections={name: 0})
