"""DetectStream over a real connection."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_server.telemetry.logs import TextFormatter
from tests.support.pictures import Pictures
from tests.support.server import Failure, MakeApplication, Serve, ServerClient, listening
from tests.support.timeouts import TIMEOUT
from tests.support.valve import Valve

COLOURS = ["red", "lime", "blue", "yellow", "cyan", "magenta", "white"]
DROP = pb.StreamOptions.OVERLOAD_DROP_OLDEST
SERVER_BEHIND = pb.DetectStreamResponse.DROP_REASON_SERVER_BEHIND
CLIENT_BEHIND = pb.DetectStreamResponse.DROP_REASON_CLIENT_BEHIND
METHOD = {"grpc_type": "bidi_stream", "grpc_method": "DetectStream"}


class Stream:
    """One call, by hand."""

    def __init__(self, client: ServerClient, timeout: float | None = None) -> None:
        self.client = client
        self.call = pb_grpc.DetectionServiceStub(client.channel).DetectStream(timeout=timeout)

    async def options(self, **fields: Any) -> None:
        await self.call.write(pb.DetectStreamRequest(options=pb.StreamOptions(**fields)))

    async def frame(self, identifier: int, image: bytes, **fields: Any) -> None:
        frame = pb.Frame(id=identifier, image=pb.Image(content=image), **fields)
        await self.call.write(pb.DetectStreamRequest(frame=frame))

    async def answer(self) -> pb.DetectStreamResponse:
        answer = await asyncio.wait_for(self.call.read(), TIMEOUT)
        assert isinstance(answer, pb.DetectStreamResponse), await self.call.code()
        return answer

    async def left(self) -> list[pb.DetectStreamResponse]:
        answers = []
        while (answer := await asyncio.wait_for(self.call.read(), TIMEOUT)) is not grpc.aio.EOF:
            assert isinstance(answer, pb.DetectStreamResponse)
            answers.append(answer)
        return answers

    async def rest(self) -> tuple[list[pb.DetectStreamResponse], grpc.StatusCode]:
        """Sends no more; the answers that are left, and how the stream ends."""
        await self.call.done_writing()
        return await self.left(), await self.call.code()

    async def failure(self) -> Failure:
        return await self.client.failure(self.left())


@asynccontextmanager
async def opened(client: ServerClient, **options: Any) -> AsyncIterator[Stream]:
    stream = Stream(client)
    await stream.options(**options)
    yield stream
    stream.call.cancel()


def reason_of(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    reason: str = info.reason
    return reason


async def received(client: ServerClient, count: int) -> None:
    """Returns when the server has read so many messages of the stream."""
    await client.until(lambda now: now.sum("grpc_server_msg_received_total", **METHOD) == count)


async def test_answers_come_in_the_order_of_the_frames_and_with_their_ids(serve: Serve, pictures: Pictures) -> None:
    async with serve(workers=2) as client, opened(client, profile="quick", max_detections=1) as stream:
        images = [pictures.encode(pictures.draw(colour)) for colour in COLOURS]
        identifiers = [2**64 - 1, 0, 5, 5, 3, 9, 1]
        for identifier, image in zip(identifiers, images, strict=True):
            await stream.frame(identifier, image)
        answers, code = await stream.rest()
        alone = [await client.detect(image, profile="quick", max_detections=1) for image in images]
        now = await client.metrics()
    assert code == grpc.StatusCode.OK
    assert [answer.frame_id for answer in answers] == identifiers
    assert [answer.result.detections for answer in answers] == [response.detections for response in alone]
    assert now.sum("grpc_server_started_total", **METHOD) == 1
    assert now.sum("grpc_server_handled_total", **METHOD, grpc_code="OK") == 1
    assert now.sum("grpc_server_msg_received_total", **METHOD) == 8
    assert now.sum("grpc_server_msg_sent_total", **METHOD) == 7
    assert now.sum("damoserve_stream_frames_total", outcome="answered") == 7


async def test_a_frame_that_fails_is_answered_like_a_call_and_the_stream_goes_on(
    serve: Serve, pictures: Pictures
) -> None:
    async with serve() as client, opened(client) as stream:
        await stream.frame(1, b"no image")
        await stream.frame(2, pictures.red, latency_budget=Duration())
        await stream.frame(3, pictures.red, latency_budget=Duration(nanos=1))
        await stream.frame(4, pictures.red)
        answers, code = await stream.rest()
        unary = await client.failure(client.detect(b"no image"))
        (undecodable, out_of_range, late, good), now = answers, await client.metrics()
    assert code == grpc.StatusCode.OK
    assert undecodable.error.code == unary.code.value[0]
    assert undecodable.error.message == unary.message
    assert unary.status is not None
    assert [d.type_url for d in undecodable.error.details] == [d.type_url for d in unary.status.details]
    reasons = [reason_of(answer.error) for answer in (undecodable, out_of_range, late)]
    assert reasons == ["IMAGE_UNDECODABLE", "ARGUMENT_OUT_OF_RANGE", "DEADLINE_EXPIRED"]
    assert len(good.result.detections) == 4
    assert now.sum("damoserve_stream_frames_total", outcome="refused") == 3
    assert now.sum("damoserve_refused_total", reason="IMAGE_UNDECODABLE") == 2


async def test_a_fault_is_the_frames_and_shows_nothing(
    serve: Serve, pictures: Pictures, valve: Valve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(TextFormatter())
    with caplog.at_level(logging.ERROR):
        async with serve(valve.load) as client, opened(client) as stream:
            request_id = str(dict(await stream.call.initial_metadata())["x-request-id"])
            valve.fault = ZeroDivisionError("secret")
            await stream.frame(7, pictures.red)
            faulty = await stream.answer()
            valve.fault = None
            await stream.frame(8, pictures.red)
            good = await stream.answer()
    assert (reason_of(faulty.error), faulty.error.message) == ("INTERNAL", "internal error")
    assert request_id.encode() in faulty.error.SerializeToString()
    assert "frame 7 failed" in caplog.text
    assert caplog.text.count(request_id) == 1
    assert "secret" in caplog.text
    assert "secret" not in str(faulty)
    assert len(good.result.detections) == 4


async def test_each_frame_has_its_own_budget(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    """The second one expires while the first is computed, long before the stream's own budget."""
    budget = Duration(seconds=1000)
    async with serve(valve.load, max_batch_size=1) as client, opened(client, latency_budget=budget) as stream:
        valve.shut()
        await stream.frame(1, pictures.red)
        await valve.entered()
        await stream.frame(2, pictures.red, latency_budget=Duration(nanos=200_000_000))
        await client.until(lambda now: now.sum("damoserve_refused_total", reason="DEADLINE_EXPIRED") == 1)
        valve.open()
        first, second = [await stream.answer(), await stream.answer()]
    assert len(first.result.detections) == 4
    assert reason_of(second.error) == "DEADLINE_EXPIRED"
    assert valve.sizes == [1]


async def test_a_slow_server_stops_reading(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    async with serve(valve.load, max_batch_size=1, stream_window=2) as client, opened(client) as stream:
        valve.shut()
        for identifier in range(4):
            await stream.frame(identifier, pictures.red)
        await client.until(lambda now: now.sum("damoserve_queued_requests") == 1)
        read = (await client.metrics()).sum("grpc_server_msg_received_total", **METHOD)
        valve.open()
        answers, _ = await stream.rest()
    assert read == 3  # the options and two frames
    assert [(answer.frame_id, len(answer.result.detections)) for answer in answers] == [(n, 4) for n in range(4)]


async def test_a_slow_server_drops_the_oldest_frame_that_waits(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    async with (
        serve(valve.load, max_batch_size=1, stream_window=2) as client,
        opened(client, on_overload=DROP) as stream,
    ):
        valve.shut()
        for identifier in range(6):
            await stream.frame(identifier, pictures.red)
        await received(client, 7)
        valve.open()
        answers, code = await stream.rest()
        now = await client.metrics()
    assert code == grpc.StatusCode.OK
    assert [answer.frame_id for answer in answers] == list(range(6))
    outcomes = [answer.WhichOneof("outcome") for answer in answers]
    assert outcomes == ["result", "result", "dropped", "dropped", "dropped", "result"]
    assert {answer.dropped for answer in answers[2:5]} == {SERVER_BEHIND}
    assert now.sum("damoserve_stream_frames_total", outcome="dropped_server_behind") == 3
    assert len(valve.sizes) == 3


async def test_a_slow_client_has_frames_dropped(serve: Serve, pictures: Pictures) -> None:
    async with serve(stream_window=2) as client, opened(client, on_overload=DROP) as stream:
        for identifier in range(2):
            await stream.frame(identifier, pictures.red, answers_taken=0)
        await client.until(lambda now: now.sum("damoserve_stream_frames_total", outcome="answered") == 2)
        await stream.frame(2, pictures.red, answers_taken=0)
        await stream.frame(3, pictures.red, answers_taken=0)
        await received(client, 5)
        computed = (await client.metrics()).sum("damoserve_batch_size_sum")
        await stream.frame(4, pictures.red, answers_taken=2)
        answers = [await stream.answer() for _ in range(5)]
    assert computed == 2
    assert [answer.WhichOneof("outcome") for answer in answers] == ["result", "result", "dropped", "result", "result"]
    assert answers[2].dropped == CLIENT_BEHIND


async def test_a_frame_that_waits_for_a_client_is_answered_at_its_deadline(serve: Serve, pictures: Pictures) -> None:
    async with serve(stream_window=1) as client, opened(client, on_overload=DROP) as stream:
        await stream.frame(0, pictures.red, answers_taken=0)
        await stream.answer()
        await stream.frame(1, pictures.red, answers_taken=0, latency_budget=Duration(nanos=1_000_000))
        result = await stream.answer()
    assert reason_of(result.error) == "DEADLINE_EXPIRED"


@pytest.mark.parametrize("policy", [pb.StreamOptions.OVERLOAD_WAIT, DROP])
async def test_a_client_that_vanishes_frees_everything(
    serve: Serve, pictures: Pictures, valve: Valve, policy: "pb.StreamOptions.Overload.ValueType"
) -> None:
    async with serve(valve.load, max_batch_size=1, stream_window=3) as client:
        valve.shut()
        async with opened(client, on_overload=policy) as stream:
            for identifier in range(5):
                await stream.frame(identifier, pictures.red)
            await client.until(lambda now: now.sum("damoserve_queued_requests") == 2)
            held = (await client.metrics()).sum("damoserve_pool_slots", state="leased")
        await client.until(lambda now: now.sum("damoserve_pool_slots", state="leased") == 1)
        valve.open()
        await client.until(lambda now: now.sum("damoserve_pool_slots", state="leased") == 0)
        await client.until(lambda now: now.sum("grpc_server_handled_total", **METHOD, grpc_code="CANCELLED") == 1)
        assert len((await client.detect(pictures.red)).detections) == 4
    assert held == 3
    assert valve.sizes == [1, 1]


async def test_an_idle_client_that_vanishes_is_counted_as_cancelled(serve: Serve) -> None:
    async with serve() as client:
        async with opened(client):
            await received(client, 1)
        await client.until(lambda now: now.sum("grpc_server_handled_total", **METHOD) == 1)
        result = await client.metrics()
    assert result.sum("grpc_server_handled_total", **METHOD, grpc_code="CANCELLED") == 1


async def test_a_stopping_server_answers_the_frames_that_it_accepted(
    serve: Serve, pictures: Pictures, valve: Valve
) -> None:
    async with (
        serve(valve.load, max_batch_size=1) as client,
        opened(client) as stream,
        opened(client) as idle,
    ):
        valve.shut()
        for identifier in range(3):
            await stream.frame(identifier, pictures.red)
        await client.until(lambda now: now.sum("damoserve_queued_requests") == 2)
        await received(client, 5)
        stopping = asyncio.ensure_future(client.application.stop())
        ended = await idle.failure()
        late = await Stream(client).failure()
        valve.open()
        answers = [await stream.answer() for _ in range(3)]
        failures = [ended, late, await stream.failure()]
        await stopping
    assert [len(answer.result.detections) for answer in answers] == [4, 4, 4]
    assert [(failure.code.name, failure.reason) for failure in failures] == [("UNAVAILABLE", "SHUTTING_DOWN")] * 3


Begin = Callable[[Stream, bytes], Awaitable[None]]


async def frame_first(stream: Stream, red: bytes) -> None:
    await stream.frame(1, red)


async def nothing(stream: Stream, red: bytes) -> None:
    await stream.call.write(pb.DetectStreamRequest())


async def options_twice(stream: Stream, red: bytes) -> None:
    await stream.options()
    await stream.options()


async def unknown_policy(stream: Stream, red: bytes) -> None:
    await stream.options(on_overload=9)


async def profile_and_tier(stream: Stream, red: bytes) -> None:
    await stream.options(profile="quick", latency_tier=1)


async def no_budget(stream: Stream, red: bytes) -> None:
    await stream.options(latency_budget=Duration())


async def unknown_model(stream: Stream, red: bytes) -> None:
    await stream.options(model="birds")


async def unknown_profile(stream: Stream, red: bytes) -> None:
    await stream.options(profile="fast")


@pytest.mark.parametrize(
    ("begin", "code", "reason"),
    [
        (frame_first, "INVALID_ARGUMENT", "STREAM_OUT_OF_ORDER"),
        (nothing, "INVALID_ARGUMENT", "STREAM_OUT_OF_ORDER"),
        (options_twice, "INVALID_ARGUMENT", "STREAM_OUT_OF_ORDER"),
        (unknown_policy, "INVALID_ARGUMENT", "ARGUMENT_OUT_OF_RANGE"),
        (profile_and_tier, "INVALID_ARGUMENT", "PROFILE_AND_TIER"),
        (no_budget, "INVALID_ARGUMENT", "ARGUMENT_OUT_OF_RANGE"),
        (unknown_model, "NOT_FOUND", "MODEL_NOT_FOUND"),
        (unknown_profile, "NOT_FOUND", "PROFILE_NOT_FOUND"),
    ],
)
async def test_wrong_options_end_the_stream(
    serve: Serve, pictures: Pictures, begin: Begin, code: str, reason: str
) -> None:
    async with serve() as client:
        stream = Stream(client)
        await begin(stream, pictures.red)
        failure = await stream.failure()
        await client.until(lambda now: now.sum("grpc_server_handled_total", **METHOD, grpc_code=code) == 1)
        request_id = dict(await stream.call.initial_metadata())["x-request-id"]
    assert (failure.code.name, failure.reason) == (code, reason)
    assert failure.metadata["x-request-id"] == request_id
    assert failure.detail(error_details_pb2.RequestInfo).request_id == request_id


async def test_frames_before_a_protocol_error_are_answered(serve: Serve, pictures: Pictures) -> None:
    async with serve() as client, opened(client) as stream:
        await stream.frame(1, pictures.red)
        await stream.options()
        answer, failure = await stream.answer(), await stream.failure()
    assert len(answer.result.detections) == 4
    assert failure.reason == "STREAM_OUT_OF_ORDER"


async def test_bytes_that_are_no_message_end_the_stream(serve: Serve) -> None:
    async with serve() as client:
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
        method = client.channel.stream_stream("/damoserve.v1.DetectionService/DetectStream")
        call = method()
        await call.write(b"\xff\xff\xff")
        result = await client.failure(asyncio.wait_for(call.read(), TIMEOUT))
    assert result.reason == "MESSAGE_UNDECODABLE"


async def test_a_stream_without_any_message_ends_well(serve: Serve) -> None:
    async with serve() as client:
        result = await Stream(client).rest()
    assert result == ([], grpc.StatusCode.OK)


async def test_an_idle_stream_is_ended_but_not_while_a_frame_is_computed(
    serve: Serve, pictures: Pictures, valve: Valve
) -> None:
    async with serve(valve.load, stream_idle_seconds=0.1) as client, opened(client) as stream:
        valve.shut()
        await stream.frame(1, pictures.red)
        await valve.entered()
        async with opened(client) as other:
            failures = [await other.failure()]
        valve.open()
        answer = await stream.answer()
        failures = [*failures, await stream.failure()]
    assert len(answer.result.detections) == 4
    assert [(failure.code.name, failure.reason) for failure in failures] == [("DEADLINE_EXCEEDED", "STREAM_IDLE")] * 2


async def test_a_client_that_takes_no_answers_frees_the_stream(serve: Serve, pictures: Pictures) -> None:
    async with serve(stream_idle_seconds=0.2, max_streams=1, stream_window=2) as client:
        options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]  # little is held unread
        async with grpc.aio.insecure_channel(f"127.0.0.1:{client.application.port}", options) as channel:
            other = type(client)(client.application, channel)
            async with opened(other) as stream:

                async def send() -> None:
                    for number in range(1000):
                        await stream.frame(number, pictures.red)

                sending = asyncio.ensure_future(send())
                await client.until(lambda now: now.sum("damoserve_refused_total", reason="STREAM_IDLE") == 1)
                sent = (await client.metrics()).sum("damoserve_stream_frames_total")
                sending.cancel()
                async with opened(client) as next_one:
                    await next_one.frame(1, pictures.red)
                    answer = await next_one.answer()
    assert sent < 100
    assert len(answer.result.detections) == 4


async def test_streams_are_bounded(serve: Serve, pictures: Pictures) -> None:
    async with serve(max_streams=1) as client:
        async with opened(client) as stream:
            await received(client, 1)
            failure = await Stream(client).failure()
            assert (await stream.rest())[1] == grpc.StatusCode.OK
        async with opened(client) as stream:
            await stream.frame(1, pictures.red)
            answer = await stream.answer()
    assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")
    assert failure.detail(error_details_pb2.RetryInfo).retry_delay.ToNanoseconds() > 0
    assert len(answer.result.detections) == 4


async def test_the_deadline_of_the_stream_is_that_of_its_frames_too(
    serve: Serve, pictures: Pictures, valve: Valve
) -> None:
    async with serve(valve.load, max_batch_size=1) as client:
        valve.shut()
        first = asyncio.ensure_future(client.detect(pictures.red))
        await valve.entered()
        stream = Stream(client, timeout=0.3)
        await stream.options(latency_budget=Duration(seconds=1000))
        await stream.frame(1, pictures.red)
        failure = await stream.failure()
        await client.until(lambda now: now.sum("damoserve_pool_slots", state="leased") == 1)
        valve.open()
        await first
        await client.until(lambda now: now.sum("grpc_server_handled_total", **METHOD) == 1)
        now = await client.metrics()
    assert failure.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert now.sum("grpc_server_handled_total", **METHOD, grpc_code="DEADLINE_EXCEEDED") == 1
    assert valve.sizes == [1]


@pytest.mark.parametrize(("stream_seconds", "frame_seconds"), [(15, 1000), (1000, 15)])
async def test_what_cannot_be_in_time_for_its_stream_or_itself_is_not_let_in(
    serve: Serve, pictures: Pictures, stream_seconds: int, frame_seconds: int
) -> None:
    async with serve() as client:
        client.learn(30.0)
        stream = Stream(client, timeout=stream_seconds)
        await stream.options(profile="quick")
        await stream.frame(1, pictures.red, latency_budget=Duration(seconds=frame_seconds))
        answer = await stream.answer()
    assert answer.WhichOneof("outcome") == "error"
    assert reason_of(answer.error) == "DEADLINE_UNREACHABLE"


async def test_a_stream_waits_for_the_models(application: MakeApplication, pictures: Pictures, valve: Valve) -> None:
    valve.shut()
    server = application(valve.load)
    async with listening(server) as client:
        loading = asyncio.ensure_future(server.load())
        await valve.entered()
        async with opened(client) as stream:
            await stream.frame(1, pictures.red)
            await received(client, 1)
            valve.open()
            await loading
            answer = await stream.answer()
    assert len(answer.result.detections) == 4


async def test_other_streams_are_counted_and_work(serve: Serve) -> None:
    async with serve() as client:
        watch = health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest())
        status = (await watch.read()).status
        watched = await client.metrics()
        watch.cancel()
        listing = reflection_pb2.ServerReflectionRequest(list_services="")
        reflected = reflection_pb2_grpc.ServerReflectionStub(client.channel).ServerReflectionInfo(iter([listing]))
        services = [answer async for answer in reflected]
        await client.until(lambda now: now.sum("grpc_server_handled_total", grpc_method="Watch") == 1)
        now = await client.metrics()
    assert status == health_pb2.HealthCheckResponse.SERVING
    assert len(services) == 1
    watch = {"grpc_type": "server_stream", "grpc_method": "Watch"}
    assert watched.sum("grpc_server_started_total", **watch) == 1
    assert watched.sum("grpc_server_handled_total", **watch) == 0
    assert watched.sum("grpc_server_msg_sent_total", **watch) == 1
    assert now.sum("grpc_server_handled_total", **watch, grpc_code="CANCELLED") == 1
    assert now.sum("grpc_server_handled_total", grpc_type="bidi_stream", grpc_method="ServerReflectionInfo") == 1
