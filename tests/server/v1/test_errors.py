"""Every row of the contract's table of errors, and that the server serves on after each."""

import asyncio
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

from damoserve.v1 import detection_pb2 as pb
from damoserve_server import errors
from damoserve_server.rpc.status import to_status
from damoserve_server.telemetry.logs import TextFormatter
from tests.support.pictures import Pictures
from tests.support.server import Serve
from tests.support.valve import Valve

NAN = float("nan")


def huge_png() -> bytes:
    """A PNG that says it has 40000 x 40000 pixels, 6.4 GB when decoded."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 40000, 40000, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))


async def test_invalid_requests(serve: Serve, pictures: Pictures) -> None:
    red = pictures.red
    jpeg = pictures.encode(pictures.draw("red"), "JPEG")
    gif = pictures.encode(pictures.draw("red"), "GIF")
    cases: dict[str, tuple[bytes, dict[str, Any], tuple[str, str]]] = {
        "empty": (b"", {}, ("IMAGE_EMPTY", "image.content")),
        "random bytes": (bytes(range(256)), {}, ("IMAGE_UNDECODABLE", "image.content")),
        "truncated JPEG": (jpeg[: len(jpeg) // 2], {}, ("IMAGE_UNDECODABLE", "image.content")),
        "unsupported format": (gif, {}, ("IMAGE_UNDECODABLE", "image.content")),
        "too many pixels": (huge_png(), {}, ("IMAGE_TOO_LARGE", "image.content")),
        "too many bytes": (bytes(16 * 2**20 + 1), {}, ("IMAGE_TOO_LARGE", "image.content")),
        "negative threshold": (red, {"score_threshold": -0.1}, ("ARGUMENT_OUT_OF_RANGE", "score_threshold")),
        "threshold above one": (red, {"score_threshold": 1.1}, ("ARGUMENT_OUT_OF_RANGE", "score_threshold")),
        "threshold not a number": (red, {"score_threshold": NAN}, ("ARGUMENT_OUT_OF_RANGE", "score_threshold")),
        "accuracy above one": (red, {"min_accuracy": 1.1}, ("ARGUMENT_OUT_OF_RANGE", "min_accuracy")),
        "no detections": (red, {"max_detections": 0}, ("ARGUMENT_OUT_OF_RANGE", "max_detections")),
        "no such priority": (red, {"priority": 6}, ("ARGUMENT_OUT_OF_RANGE", "priority")),
        "too many detections": (red, {"max_detections": 1001}, ("ARGUMENT_OUT_OF_RANGE", "max_detections")),
        "no budget": (red, {"latency_budget": Duration()}, ("ARGUMENT_OUT_OF_RANGE", "latency_budget")),
        "unknown tier": (red, {"latency_tier": 99}, ("ARGUMENT_OUT_OF_RANGE", "latency_tier")),
        "profile and tier": (red, {"profile": "quick", "latency_tier": 1}, ("PROFILE_AND_TIER", "latency_tier")),
    }
    outcomes = {}
    async with serve() as client:
        for name, (content, fields, _) in cases.items():
            failure = await client.failure(client.detect(content, **fields))
            assert failure.code == grpc.StatusCode.INVALID_ARGUMENT, name
            violation = failure.detail(error_details_pb2.BadRequest).field_violations[0]
            assert failure.status is not None
            assert violation.description == failure.message == failure.status.message
            outcomes[name] = (failure.reason, violation.field)
            assert len((await client.detect(red)).detections) == 4
    assert outcomes == {name: expected for name, (_, _, expected) in cases.items()}


async def test_a_message_above_the_limit_is_refused_by_grpc(serve: Serve, pictures: Pictures) -> None:
    async with serve() as client:
        failure = await client.failure(client.detect(bytes(20_000_000)))
        started = (await client.metrics()).sum("grpc_server_started_total")
        assert len((await client.detect(pictures.red)).detections) == 4
    assert failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure.reason is None
    assert started == 0


async def test_a_call_too_many_is_refused_by_grpc(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    async with serve(valve.load, max_concurrent_calls=1) as client:
        valve.shut()
        first = asyncio.ensure_future(client.detect(pictures.red))
        await valve.entered()
        failure = await client.failure(client.detect(pictures.red))
        started = (await client.metrics()).sum("grpc_server_started_total")
        valve.open()
        assert len((await first).detections) == 4
    assert failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure.reason is None
    assert started == 1


async def test_what_does_not_exist(serve: Serve, pictures: Pictures) -> None:
    async with serve() as client:
        profiles = client.profiles
        calls = [
            client.detect(pictures.red, model="ä" * 100_000),
            client.detect(pictures.red, model="birds"),
            client.detect(pictures.red, profile="fast"),
            profiles.ListProfiles(pb.ListProfilesRequest(model="birds")),
            profiles.GetProfile(pb.GetProfileRequest(model="birds", profile="quick")),
            profiles.GetProfile(pb.GetProfileRequest()),
        ]
        failures = [await client.failure(call) for call in calls]
        assert len((await client.detect(pictures.red)).detections) == 4
    assert {failure.code for failure in failures} == {grpc.StatusCode.NOT_FOUND}
    resources = [failure.detail(error_details_pb2.ResourceInfo).resource_name for failure in failures]
    assert resources == ["ä" * 100, "birds", "colours/fast", "birds", "birds", "colours/"]
    assert [failure.reason for failure in failures] == [
        "MODEL_NOT_FOUND",
        "MODEL_NOT_FOUND",
        "PROFILE_NOT_FOUND",
        "MODEL_NOT_FOUND",
        "MODEL_NOT_FOUND",
        "PROFILE_NOT_FOUND",
    ]
    assert failures[2].message == "the model colours has no profile 'fast'"
    request_id = failures[2].metadata["x-request-id"]
    assert failures[2].detail(error_details_pb2.RequestInfo).request_id == request_id
    assert failures[2].detail(error_details_pb2.ErrorInfo).metadata == {"profile": "fast", "request_id": request_id}


async def test_accuracy_that_no_profile_reaches(serve: Serve, pictures: Pictures) -> None:
    async with serve() as client:
        failures = [
            await client.failure(client.detect(pictures.red, min_accuracy=0.7)),
            await client.failure(client.detect(pictures.red, min_accuracy=0.5, profile="quick")),
        ]
        assert len((await client.detect(pictures.red, min_accuracy=0.6)).detections) == 4
    for failure in failures:
        assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ACCURACY_UNAVAILABLE")


async def test_budget_that_no_profile_can_meet(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    async with serve(valve.load) as client:
        client.learn(1000.0)
        valve.sizes.clear()
        budget = Duration(seconds=5)
        failures = [
            await client.failure(client.detect(pictures.red, latency_budget=budget)),
            await client.failure(client.detect(pictures.red, latency_budget=budget, profile="quick")),
        ]
        assert valve.sizes == []
        assert len((await client.detect(pictures.red, timeout=5000.0)).detections) == 4
    for failure in failures:
        assert (failure.code, failure.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_UNREACHABLE")
        assert float(failure.detail(error_details_pb2.ErrorInfo).metadata["budget_ms"]) > 0


async def test_budget_that_is_over_on_arrival(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    async with serve(valve.load) as client:
        valve.sizes.clear()
        failure = await client.failure(client.detect(pictures.red, latency_budget=Duration(nanos=1)))
        assert valve.sizes == []
        assert len((await client.detect(pictures.red)).detections) == 4
    assert (failure.code, failure.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED")


async def test_grpc_deadline_of_one_millisecond(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    """The image alone takes longer to decode, whatever the machine."""
    async with serve(valve.load) as client:
        slow = pictures.encode(pictures.draw("red", size=(2000, 2000)))
        valve.sizes.clear()
        failure = await client.failure(client.detect(slow, timeout=0.001))
        assert len((await client.detect(pictures.red)).detections) == 4
        await client.until(lambda now: now.sum("damoserve_pool_slots", state="leased") == 0)
    assert failure.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert valve.sizes == [1]


async def test_deadline_that_comes_while_the_request_waits(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    async with serve(valve.load, max_batch_size=1) as client:
        valve.shut()
        first = asyncio.ensure_future(client.detect(pictures.red))
        await valve.entered()
        failure = await client.failure(client.detect(pictures.red, latency_budget=Duration(nanos=200_000_000)))
        assert valve.sizes == [1]
        valve.open()
        assert len((await first).detections) == 4
    assert (failure.code, failure.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED")


async def test_time_that_does_not_suffice_any_more_when_the_worker_is_free(
    serve: Serve, pictures: Pictures, valve: Valve
) -> None:
    async with serve(valve.load, max_batch_size=1) as client:
        valve.shut()
        first = asyncio.ensure_future(client.detect(pictures.red))
        await valve.entered()
        second = asyncio.ensure_future(client.detect(pictures.red, latency_budget=Duration(seconds=10)))
        await client.until(lambda now: now.sum("damoserve_queued_requests") == 1)
        for _ in range(3):  # whatever the first one took, the median is now an hour
            client.learn(3600.0)
        valve.open()
        assert len((await first).detections) == 4
        failure = await client.failure(second)
    assert (failure.code, failure.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_UNREACHABLE")
    assert valve.sizes == [1]


async def test_full_queue(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    """One computes, two wait, seven are refused while the three are still unanswered."""
    async with serve(valve.load, max_batch_size=1, max_queue=2) as client:
        valve.shut()
        computed = asyncio.ensure_future(client.detect(pictures.red, profile="quick"))
        await valve.entered()
        profiles = ("accurate", "quick", "accurate") * 3  # the queue is one for all
        done: set[asyncio.Future[Any]] = set()
        waiting = {asyncio.ensure_future(client.detect(pictures.red, profile=profile)) for profile in profiles}
        while len(done) < 7:
            finished, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            done |= finished
        valve.open()
        failures = [await client.failure(call) for call in done]
        answers = [await call for call in (computed, *waiting)]
        assert len((await client.detect(pictures.red)).detections) == 4
    assert len(answers) == 3
    for failure in failures:
        assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert failure.detail(error_details_pb2.RetryInfo).retry_delay.ToNanoseconds() > 0


async def test_a_fault_is_logged_once_under_the_request_id_and_not_shown(
    serve: Serve, pictures: Pictures, valve: Valve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(TextFormatter())
    with caplog.at_level(logging.ERROR):
        async with serve(valve.load) as client:
            valve.fault = ZeroDivisionError("secret")
            failure = await client.failure(client.detect(pictures.red))
            valve.fault = None
            assert len((await client.detect(pictures.red)).detections) == 4
    assert (failure.code, failure.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert failure.message == "internal error"
    assert caplog.text.count(str(failure.metadata["x-request-id"])) == 1
    assert "secret" in caplog.text
    assert "secret" not in str(failure)


async def test_bytes_that_are_no_message(serve: Serve, pictures: Pictures) -> None:
    async with serve() as client:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        method = client.channel.unary_unary("/damoserve.v1.DetectionService/Detect")
        failure = await client.failure(method(b"\xff\xff\xff"))
        assert len((await client.detect(pictures.red)).detections) == 4
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_UNDECODABLE")


@pytest.mark.parametrize("given", ["", "a" * 129])
async def test_an_unusable_request_id_is_replaced(serve: Serve, pictures: Pictures, given: str) -> None:
    async with serve() as client:
        request = pb.DetectRequest(image=pb.Image(content=pictures.red))
        method = client.channel.unary_unary(
            "/damoserve.v1.DetectionService/Detect",
            request_serializer=pb.DetectRequest.SerializeToString,
            response_deserializer=pb.DetectResponse.FromString,
        )

        async def echoed(request_id: str) -> str | bytes:
            call = method(request, metadata=(("x-request-id", request_id),))
            await call
            return dict(await call.trailing_metadata())["x-request-id"]

        mine, replaced = await echoed("mine"), await echoed(given)
    assert mine == "mine"
    assert len(replaced) == 32


def test_the_table_of_the_contract() -> None:
    """Reasons and codes in the code are those in the comments of the contract."""
    documented = {}
    folder = Path(pb.__file__).parent
    contract = [(folder / name).read_text() for name in ("detection.proto", "admin.proto")]
    for line in "".join(contract).splitlines():
        cells = [cell.strip() for cell in line.removeprefix("//").strip().strip("|").split("|")]
        if len(cells) == 3 and cells[1].isupper():
            documented[cells[1]] = cells[0]
    kinds = _kinds(errors.DamoserveError)
    assert {kind.reason: kind.code.name for kind in kinds} == documented
    assert sorted(errors.reasons()) == sorted(documented)


def _kinds(root: type[errors.DamoserveError]) -> list[type[errors.DamoserveError]]:
    below = [kind for child in root.__subclasses__() for kind in _kinds(child)]
    return below or [root]


def test_details_hold_the_variable_parts() -> None:
    status = to_status(errors.DeadlineUnreachable(0.25, 0.1))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.metadata == {"expected_ms": "250.0", "budget_ms": "100.0"}
    assert status.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
