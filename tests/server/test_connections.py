"""The limits of one connection, as clients feel them."""

import asyncio

import grpc
import pytest
from pydantic import ValidationError

from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_server.settings import Settings

PATIENCE = 20.0
EAGER = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.keepalive_time_ms", 10),
    ("grpc.http2.max_pings_without_data", 0),
]
"""A client that asks every ten milliseconds whether the server is still there."""


def held_call(client, image, seconds=PATIENCE):
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{client.application.port}", EAGER)
    request = pb.DetectRequest(image=pb.Image(content=image))
    return channel, pb_grpc.DetectionServiceStub(channel).Detect(request, timeout=seconds)


def test_a_connection_that_has_its_calls_open_holds_back_the_next(serve, pictures, valve):
    """Without this limit the second call would reach the server, which takes only one at a time, and be refused."""

    async def scenario():
        async with serve(valve.load, connections={"max_streams": 1}, max_concurrent_calls=1) as client:
            valve.shut()
            calls = [asyncio.ensure_future(client.detect(pictures.red)) for _ in range(2)]
            await valve.entered()
            valve.open()
            return [len((await call).detections) for call in calls]

    assert asyncio.run(scenario()) == [4, 4]


@pytest.mark.parametrize(("interval", "lost"), [(300.0, True), (0.0, False)])
def test_a_client_that_pings_more_often_than_it_may_loses_its_connection(serve, pictures, valve, interval, lost):
    async def scenario():
        async with serve(valve.load, connections={"min_ping_interval_seconds": interval}) as client:
            valve.shut()
            channel, call = held_call(client, pictures.red)
            async with channel:
                await valve.entered()
                if lost:
                    failure = await client.failure(call)
                    valve.open()
                    return failure.code, failure.message
                done, _ = await asyncio.wait([asyncio.ensure_future(call.code())], timeout=0.5)
                valve.open()
                return done, len((await call).detections)

    outcome = asyncio.run(scenario())
    if lost:
        assert outcome[0] == grpc.StatusCode.UNAVAILABLE
        assert outcome[1] == "Too many pings"
    else:
        assert outcome == (set(), 4)


@pytest.mark.parametrize("name", ["keepalive_seconds", "max_age_seconds", "max_streams"])
def test_limits_must_be_positive(name):
    with pytest.raises(ValidationError, match=name):
        Settings(connections={name: 0})
