"""Every request has one end, whichever protocol it came by."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterable, Awaitable, Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray

from damoserve.kserve.v2 import inference_pb2
from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_server.access.tokens import digest_of
from damoserve_server.engines.engine import Engine, Outputs
from damoserve_server.metrics.requests import NO_TIER, Outcome
from damoserve_server.scheduling.selection import Tier
from tests.support.pictures import Pictures
from tests.support.server import MakeApplication, Samples, Serve, ServerClient, listening
from tests.support.timeouts import TIMEOUT
from tests.support.valve import Valve

TIERS = {"realtime": {"objective_ms": 1e-3}, "balanced": {"objective_ms": 30_000}}
REALTIME = pb.LATENCY_TIER_REALTIME
NAMED: dict[str, Any] = {"profile": "quick"}
HURRIED: dict[str, Any] = {"latency_budget": Duration(seconds=2)}


def ends(now: Samples) -> dict[tuple[str, str], int]:
    """How often each tier had each end."""
    found = {
        (tier, outcome): int(now.sum("damoserve_requests_total", tier=tier, outcome=outcome))
        for tier in (*Tier, NO_TIER)
        for outcome in Outcome
    }
    return {key: count for key, count in found.items() if count}


def in_flight(now: Samples) -> float:
    return now.sum("damoserve_requests_in_flight")


def infer_request(images: Sequence[bytes], name: str = "colours", **fields: Any) -> inference_pb2.ModelInferRequest:
    tensor = inference_pb2.ModelInferRequest.InferInputTensor(name="images", datatype="BYTES", shape=[len(images)])
    tensor.contents.bytes_contents.extend(images)
    return inference_pb2.ModelInferRequest(model_name=name, inputs=[tensor], **fields)


def infer(
    client: ServerClient, request: inference_pb2.ModelInferRequest
) -> Awaitable[inference_pb2.ModelInferResponse]:
    method = client.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=inference_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=inference_pb2.ModelInferResponse.FromString,
    )
    return method(request, timeout=TIMEOUT)


def infer_stream(
    client: ServerClient, requests: Iterable[inference_pb2.ModelInferRequest]
) -> AsyncIterable[inference_pb2.ModelStreamInferResponse]:
    method = client.channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=inference_pb2.ModelInferRequest.SerializeToString,
        response_deserializer=inference_pb2.ModelStreamInferResponse.FromString,
    )
    return method(iter(requests), timeout=TIMEOUT)


def frames(
    client: ServerClient, images: Iterable[bytes], **options: Any
) -> "grpc.aio.StreamStreamCall[pb.DetectStreamRequest, pb.DetectStreamResponse]":
    messages = [pb.DetectStreamRequest(options=pb.StreamOptions(**options))]
    messages += [
        pb.DetectStreamRequest(frame=pb.Frame(id=number, image=pb.Image(content=image)))
        for number, image in enumerate(images)
    ]
    return pb_grpc.DetectionServiceStub(client.channel).DetectStream(iter(messages), timeout=TIMEOUT)


async def test_ends_of_calls(serve: Serve, pictures: Pictures) -> None:
    async with serve(tiers=TIERS) as client:
        await client.detect(pictures.red)
        await client.detect(pictures.red, **NAMED)
        await client.detect(pictures.red, latency_tier=REALTIME)
        await client.failure(client.detect(b""))
        await client.failure(client.detect(b"no image", **NAMED))
        await client.failure(client.detect(pictures.red, model="birds", latency_tier=REALTIME))
        await client.failure(client.detect(pictures.red, min_accuracy=0.9))
        await client.failure(client.detect(pictures.red, latency_budget=Duration(nanos=1)))
        now = await client.metrics()
    assert ends(now) == {
        ("balanced", "in_time"): 1,
        ("none", "in_time"): 1,
        ("realtime", "late"): 1,
        ("balanced", "invalid"): 1,
        ("none", "invalid"): 1,
        ("realtime", "invalid"): 1,
        ("balanced", "refused"): 1,
        ("balanced", "expired"): 1,
    }
    assert in_flight(now) == 0
    assert now.sum("damoserve_served_accuracy_count", model="colours", tier="balanced") == 1
    assert now.sum("damoserve_served_accuracy_sum", model="colours", tier="none") == pytest.approx(0.4)
    assert now.sum("damoserve_decode_failures_total", kind="empty") == 1
    assert now.sum("damoserve_decode_failures_total", kind="undecodable") == 1


async def test_calls_that_nobody_could_read_are_invalid(serve: Serve) -> None:
    async with serve() as client:
        await client.failure(client.detect(b"", latency_budget=Duration()))
        for method in ("damoserve.v1.DetectionService/Detect", "inference.GRPCInferenceService/ModelInfer"):
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = client.channel.unary_unary(f"/{method}")
            await client.failure(call(b"\xff"))
        await client.failure(infer(client, inference_pb2.ModelInferRequest(model_name="colours")))
        now = await client.metrics()
    assert ends(now) == {("none", "invalid"): 4}
    assert in_flight(now) == 0


async def test_who_has_no_token_is_invalid_and_who_has_used_it_up_is_refused(
    serve: Serve, pictures: Pictures, tmp_path: Path
) -> None:
    path = tmp_path / "tokens.yaml"
    limited = {"name": "camera", "sha256": digest_of("camera" * 6).hex(), "rate": 1e-3, "burst": 1}
    path.write_text(yaml.safe_dump({"tokens": [limited]}))
    path.chmod(0o600)
    request = pb.DetectRequest(image=pb.Image(content=pictures.red), profile="quick")
    async with serve(access={"tokens": path}) as client:
        detect = pb_grpc.DetectionServiceStub(client.channel).Detect
        bearer = (("authorization", f"Bearer {'camera' * 6}"),)
        await detect(request, timeout=TIMEOUT, metadata=bearer)
        assert (await client.failure(detect(request, metadata=bearer))).reason == "RATE_LIMITED"
        assert (await client.failure(detect(request))).reason == "TOKEN_MISSING"
        result = await client.metrics()
    assert ends(result) == {("none", "in_time"): 1, ("none", "refused"): 1, ("none", "invalid"): 1}


async def test_a_full_queue_refuses_and_whoever_waits_is_in_flight_until_it_expires_or_leaves(
    serve: Serve, pictures: Pictures, valve: Valve
) -> None:
    async with serve(valve.load, max_queue=1, max_batch_size=1) as client:
        valve.shut()
        left = client.detect(pictures.red)
        await valve.entered()
        expiring = client.detect(pictures.red, **NAMED, **HURRIED)
        await client.until(lambda now: in_flight(now) == 2)
        assert (await client.failure(client.detect(pictures.red))).reason == "QUEUE_FULL"
        assert (await client.failure(expiring)).reason == "DEADLINE_EXPIRED"
        left.cancel()
        await client.until(lambda now: in_flight(now) == 0)
        valve.open()
        await client.until(lambda now: now.sum("damoserve_unused_answers_total") == 1)
        now = await client.metrics()
    assert ends(now) == {("balanced", "refused"): 1, ("none", "expired"): 1, ("balanced", "cancelled"): 1}


async def test_a_server_that_stops_refuses_and_one_that_breaks_fails(
    serve: Serve, pictures: Pictures, valve: Valve
) -> None:
    async with serve(valve.load, drain_seconds=0.0) as client:
        valve.fault = ValueError("broken")
        assert (await client.failure(client.detect(pictures.red, **NAMED))).reason == "INTERNAL"
        valve.fault = None
        valve.shut()
        running = asyncio.ensure_future(client.detect(pictures.red, **NAMED))
        await valve.entered()
        waiting = client.detect(pictures.red, **NAMED)
        await client.until(lambda now: now.sum("damoserve_queued_requests", state="ready") == 1)
        client.application._detector.result()._workers.refuse()
        assert (await client.failure(waiting)).reason == "SHUTTING_DOWN"
        valve.open()
        await running
        result = await client.metrics()
    assert ends(result) == {("none", "failed"): 1, ("none", "refused"): 1, ("none", "in_time"): 1}


async def test_each_frame_of_a_stream_is_a_request(serve: Serve, pictures: Pictures) -> None:
    async with serve(tiers=TIERS) as client:
        images = [pictures.red, b"no image", pictures.red]
        answers = [answer async for answer in frames(client, images, latency_tier=REALTIME)]
        outcomes, now = Counter(answer.WhichOneof("outcome") for answer in answers), await client.metrics()
    assert outcomes == {"result": 2, "error": 1}
    assert ends(now) == {("realtime", "late"): 2, ("realtime", "invalid"): 1}
    assert in_flight(now) == 0


async def test_frames_of_a_stream_whose_caller_leaves_are_cancelled_and_those_dropped_refused(
    serve: Serve, pictures: Pictures, valve: Valve
) -> None:
    async with serve(valve.load, stream_window=1, max_batch_size=1) as client:
        valve.shut()
        options: dict[str, Any] = {"on_overload": pb.StreamOptions.OVERLOAD_DROP_OLDEST, **NAMED}
        call = frames(client, [pictures.red] * 4, **options)
        await valve.entered()
        await client.until(lambda now: now.sum("grpc_server_msg_received_total", grpc_method="DetectStream") == 5)
        before = in_flight(await client.metrics())
        call.cancel()
        await client.until(lambda now: in_flight(now) == 0)
        cancelled = ends(await client.metrics())
        valve.open()
        answers = [answer async for answer in frames(client, [pictures.red], **NAMED)]
        assert len(answers) == 1
        valve.shut()
        call = frames(client, [pictures.red] * 3, **options)
        await valve.entered()
        await client.until(lambda now: now.sum("grpc_server_msg_received_total", grpc_method="DetectStream") == 11)
        valve.open()
        dropped = [answer.WhichOneof("outcome") async for answer in call]
        now = await client.metrics()
    assert before == 4
    assert cancelled == {("none", "cancelled"): 4}
    assert dropped == ["result", "dropped", "result"]
    assert ends(now) == {("none", "cancelled"): 4, ("none", "in_time"): 3, ("none", "refused"): 1}


async def test_each_image_of_a_kserve_request_is_a_request_and_all_end_alike(serve: Serve, pictures: Pictures) -> None:
    async with serve(tiers=TIERS) as client:
        await infer(client, infer_request([pictures.red, pictures.red]))
        await client.failure(infer(client, infer_request([pictures.red, b"no image"], "colours/quick")))
        await client.failure(infer(client, infer_request([pictures.red], "birds")))
        requests = [infer_request([pictures.red]), inference_pb2.ModelInferRequest(), infer_request([b""])]
        answers = [bool(answer.error_message) async for answer in infer_stream(client, requests)]
        now = await client.metrics()
    assert answers == [False, True, True]
    assert ends(now) == {
        ("balanced", "in_time"): 3,
        ("none", "invalid"): 3,
        ("balanced", "invalid"): 2,
    }
    assert now.sum("damoserve_request_seconds_count") == 3
    assert in_flight(now) == 0


async def test_a_call_that_waits_for_the_models_is_a_request(application: MakeApplication, pictures: Pictures) -> None:
    async with listening(application()) as client:
        call = client.detect(pictures.red)
        await client.until(lambda now: in_flight(now) == 1)
        call.cancel()
        await client.until(lambda now: in_flight(now) == 0)
        # By its budget: at a gRPC deadline the client's own timer may be first, and cancel.
        late = await client.failure(client.detect(pictures.red, latency_budget=Duration(nanos=50 * 10**6)))
        assert late.code.name == "DEADLINE_EXCEEDED"
        await client.until(lambda now: sum(ends(now).values()) == 2)
        result = await client.metrics()
    assert ends(result) == {("balanced", "cancelled"): 1, ("balanced", "expired"): 1}


class Sleeper:
    """An engine that takes a twentieth of a second more."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        time.sleep(0.05)
        return self.engine.run(images)


async def test_stages_add_up_to_requests_and_these_to_calls(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    async with serve(lambda *args: Sleeper(valve.load(*args)), max_batch_size=1) as client:
        answers = [await client.detect(pictures.red, **NAMED) for _ in range(4)]
        answers += await asyncio.gather(*(client.detect(pictures.red, **NAMED) for _ in range(4)))
        now = await client.metrics()
    stages, requests = now.sum("damoserve_stage_seconds_sum"), now.sum("damoserve_request_seconds_sum")
    calls = now.sum("grpc_server_handling_seconds_sum", grpc_method="Detect")
    assert stages == pytest.approx(requests, rel=1e-9)
    assert requests > 8 * 0.05
    assert requests <= calls
    for answer in answers:
        timings = [(field.name, value.ToNanoseconds()) for field, value in answer.timings.ListFields()]
        total = dict(timings)["total"]
        assert sum(value for name, value in timings if name != "total") == pytest.approx(total, abs=len(timings))
    assert sum(answer.timings.total.ToNanoseconds() for answer in answers) / 1e9 == pytest.approx(requests, abs=1e-6)
    assert now.sum("damoserve_stage_seconds_sum", stage="queue") > 0.05, "the second of four waited for the first"
