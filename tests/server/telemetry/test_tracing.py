"""Traces of real calls, as they arrive at an exporter in memory."""

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from damoserve.kserve.v2 import inference_pb2 as kserve_pb
from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_client import AsyncClient, Client
from damoserve_server.scheduling.scheduler import Closing
from tests.support.pictures import Pictures
from tests.support.server import Serve, ServerClient
from tests.support.timeouts import TIMEOUT
from tests.support.traces import (
    DETECT,
    DETECT_STREAM,
    UNSAMPLED,
    Traces,
    assert_stages,
    detect_with,
    exemplars,
    follow_one_another,
    own,
)
from tests.support.valve import Valve

pytest.importorskip("opentelemetry.trace", reason="the extra tracing is not installed")

from opentelemetry.trace import SpanKind, StatusCode

INFER = "inference.GRPCInferenceService/ModelInfer"
STREAM_INFER = "inference.GRPCInferenceService/ModelStreamInfer"
ROUNDING = 1000
"""Nanoseconds: the stages are added up in seconds."""


async def test_a_trace_has_the_callers_span_ours_for_each_stage_and_the_batch(
    serve: Serve, pictures: Pictures, valve: Valve
) -> None:
    traces = Traces()
    async with serve(valve.load, tracer=traces.tracer) as client:
        client.learn(0.01)
        valve.shut()
        first = asyncio.ensure_future(detect_with(client, pictures.red, UNSAMPLED, profile="quick"))
        await valve.entered()
        both = [traces.detect(client, pictures.red, f"caller {n}", profile="quick") for n in range(2)]
        unsampled = detect_with(client, pictures.red, UNSAMPLED, profile="quick")
        together = asyncio.gather(*both, unsampled)
        await client.until(lambda now: now.sum("damoserve_queued_requests") == 3)
        valve.open()
        await first
        answers = await together
    assert [answer.batch_size for answer in answers] == [3, 3, 3]
    calls, batch = traces.named(DETECT), traces.only("batch")
    assert len(calls) == 2
    assert {link.context.span_id for link in batch.links} == {call.context.span_id for call in calls}
    closing = own(batch)["closing"]
    assert closing in set(Closing)
    whose = {"model": "colours", "model_version": 3, "profile": "quick", "batch_size": 3}
    assert own(batch) == {**whose, "closing": closing}
    assert batch.parent is None
    for number in range(2):
        caller = traces.only(f"caller {number}")
        (call,) = traces.inside(caller)
        assert call.context.trace_id == caller.context.trace_id
        assert call.kind is SpanKind.SERVER
        assert (call.attributes["rpc.method"], call.attributes["rpc.response.status_code"]) == (DETECT, "OK")
        assert_stages(traces, call)
        (inference,) = [stage for stage in traces.inside(call) if stage.name == "inference"]
        assert [link.context for link in inference.links] == [batch.context]
        assert batch.start_time <= inference.start_time + ROUNDING
        assert inference.end_time <= batch.end_time


async def test_attributes_of_a_call_say_who_served_it_and_have_no_content(serve: Serve, pictures: Pictures) -> None:
    traces = Traces()
    async with serve(tracer=traces.tracer, tiers={"balanced": {"objective_ms": 5000}}) as client:
        await detect_with(client, pictures.red, ("x-request-id", "mine"), ("authorization", "Bearer hush"))
    call = traces.only(DETECT)
    assert own(call) == {
        "request_id": "mine",
        "tier": "balanced",
        "model": "colours",
        "model_version": 3,
        "profile": "accurate",
        "selection_reason": "most_accurate_in_time",
        "batch_size": 1,
    }
    assert (call.resource.attributes["service.name"], call.status.status_code) == ("damoserve", StatusCode.UNSET)
    told = "".join(span.to_json() for span in traces.exporter.get_finished_spans())
    assert "hush" not in told
    assert "PNG" not in told


@pytest.mark.parametrize(
    ("fields", "reason", "status"),
    [
        ({"score_threshold": 2}, "ARGUMENT_OUT_OF_RANGE", StatusCode.UNSET),
        ({"model": "birds"}, "MODEL_NOT_FOUND", StatusCode.UNSET),
        ({"latency_budget": Duration(nanos=1)}, "DEADLINE_EXPIRED", StatusCode.ERROR),
    ],
)
async def test_a_refusal_is_recorded_with_its_reason(
    serve: Serve, pictures: Pictures, fields: dict[str, Any], reason: str, status: StatusCode
) -> None:
    traces = Traces()
    async with serve(tracer=traces.tracer) as client:
        failure = await client.failure(traces.detect(client, pictures.red, **fields))
    call = traces.only(DETECT)
    assert failure.reason == reason
    assert call.parent is not None
    assert call.parent.span_id == traces.only("caller").context.span_id
    assert (call.attributes["error.type"], call.status.status_code) == (reason, status)
    assert call.attributes["rpc.response.status_code"] == failure.code.name


async def test_a_batch_that_fails_is_recorded_as_failed(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    traces = Traces()
    async with serve(valve.load, tracer=traces.tracer) as client:
        valve.fault = RuntimeError("secret of the engine")
        result = await client.failure(client.detect(pictures.red))
    assert result.code is grpc.StatusCode.INTERNAL
    call, batch = traces.only(DETECT), traces.only("batch")
    assert (call.attributes["error.type"], call.status.status_code) == ("INTERNAL", StatusCode.ERROR)
    assert (batch.attributes["error.type"], batch.status.status_code) == ("RuntimeError", StatusCode.ERROR)
    assert [link.context for link in batch.links] == [call.context]
    assert "secret" not in call.to_json() + batch.to_json()


async def test_a_call_that_its_caller_leaves_is_recorded_as_cancelled(
    serve: Serve, pictures: Pictures, valve: Valve
) -> None:
    traces = Traces()
    async with serve(valve.load, tracer=traces.tracer) as client:
        valve.shut()
        call = asyncio.ensure_future(client.detect(pictures.red))
        await valve.entered()
        call.cancel()
        handled = {"grpc_method": "Detect", "grpc_code": "CANCELLED"}
        await client.until(lambda now: now.sum("grpc_server_handled_total", **handled) == 1)
        valve.open()
    assert traces.only(DETECT).attributes["error.type"] == "CANCELLED"


async def test_a_stream_has_a_span_and_each_frame_one_inside(serve: Serve, pictures: Pictures) -> None:
    traces = Traces()
    async with serve(tracer=traces.tracer) as client:
        call = pb_grpc.DetectionServiceStub(client.channel).DetectStream(timeout=TIMEOUT)
        await call.write(pb.DetectStreamRequest(options=pb.StreamOptions(profile="quick")))
        for identifier, image in [(7, pictures.red), (8, b"no image")]:
            await call.write(pb.DetectStreamRequest(frame=pb.Frame(id=identifier, image=pb.Image(content=image))))
        await call.done_writing()
        result = [answer.frame_id async for answer in call]
    assert result == [7, 8]
    stream = traces.only(DETECT_STREAM)
    frames = {own(frame)["frame_id"]: frame for frame in traces.inside(stream)}
    assert [frame.name for frame in frames.values()] == ["frame", "frame"]
    assert all(follow_one_another([frame], stream) for frame in frames.values())
    assert_stages(traces, frames["7"])
    assert own(frames["7"])["profile"] == "quick"
    assert frames["8"].attributes["error.type"] == "IMAGE_UNDECODABLE"


async def test_a_frame_that_is_dropped_has_a_span_that_says_so(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    traces = Traces()
    async with serve(valve.load, tracer=traces.tracer, stream_window=1) as client:
        valve.shut()
        call = pb_grpc.DetectionServiceStub(client.channel).DetectStream(timeout=TIMEOUT)
        options = pb.StreamOptions(on_overload=pb.StreamOptions.OVERLOAD_DROP_OLDEST)
        await call.write(pb.DetectStreamRequest(options=options))
        for identifier in range(3):
            frame = pb.Frame(id=identifier, image=pb.Image(content=pictures.red))
            await call.write(pb.DetectStreamRequest(frame=frame))
        await valve.entered()
        received = {"grpc_type": "bidi_stream", "grpc_method": "DetectStream"}
        await client.until(lambda now: now.sum("grpc_server_msg_received_total", **received) == 4)
        await call.done_writing()
        valve.open()
        answers = [(answer.frame_id, answer.WhichOneof("outcome")) async for answer in call]
    assert [identifier for identifier, _ in answers] == [0, 1, 2]
    outcomes = {own(frame)["frame_id"]: own(frame).get("outcome") for frame in traces.named("frame")}
    assert outcomes == {"0": None, "1": "dropped_server_behind", "2": None}


def infer_request(*images: bytes, identifier: str = "") -> kserve_pb.ModelInferRequest:
    contents = kserve_pb.InferTensorContents(bytes_contents=images)
    tensor = kserve_pb.ModelInferRequest.InferInputTensor(
        name="images", datatype="BYTES", shape=[len(images)], contents=contents
    )
    return kserve_pb.ModelInferRequest(id=identifier, model_name="colours", inputs=[tensor])


async def infer(client: ServerClient, *images: bytes) -> kserve_pb.ModelInferResponse:
    method = client.channel.unary_unary(
        f"/{INFER}",
        request_serializer=kserve_pb.ModelInferRequest.SerializeToString,
        response_deserializer=kserve_pb.ModelInferResponse.FromString,
    )
    return await method(infer_request(*images), timeout=TIMEOUT)


async def stream_infer(
    client: ServerClient, requests: Iterable[kserve_pb.ModelInferRequest]
) -> list[kserve_pb.ModelStreamInferResponse]:
    method = client.channel.stream_stream(
        f"/{STREAM_INFER}",
        request_serializer=kserve_pb.ModelInferRequest.SerializeToString,
        response_deserializer=kserve_pb.ModelStreamInferResponse.FromString,
    )
    return [answer async for answer in method(iter(requests), timeout=TIMEOUT)]


async def test_calls_by_kserve_are_traced_and_each_of_several_images(serve: Serve, pictures: Pictures) -> None:
    traces = Traces()
    async with serve(tracer=traces.tracer) as client:
        await infer(client, pictures.red)
        await infer(client, pictures.red, pictures.red)
    alone, several = traces.named(INFER)
    assert_stages(traces, alone)
    images = traces.inside(several)
    assert sorted((image.name, own(image)["image_id"]) for image in images) == [("image", "0"), ("image", "1")]
    for image in images:
        assert_stages(traces, image)


async def test_a_stream_by_kserve_has_a_span_for_each_message(serve: Serve, pictures: Pictures) -> None:
    traces = Traces()
    async with serve(tracer=traces.tracer) as client:
        requests = [infer_request(image, identifier=name) for name, image in [("one", pictures.red), ("two", b"")]]
        result = await stream_infer(client, requests)
    assert len(result) == 2
    stream = traces.only(STREAM_INFER)
    messages = {own(message)["message_id"]: message for message in traces.inside(stream)}
    assert messages.keys() == {"one", "two"}
    assert_stages(traces, messages["one"])
    assert messages["two"].attributes["error.type"] == "IMAGE_EMPTY"
    assert {own(message)["request_id"] for message in messages.values()} == {own(stream)["request_id"]}


async def test_our_client_names_the_span_that_it_is_called_in(serve: Serve, pictures: Pictures) -> None:
    traces = Traces()
    async with serve(tracer=traces.tracer) as server:
        address = f"127.0.0.1:{server.application.port}"
        async with AsyncClient(address, timeout=TIMEOUT) as client:
            with traces.callers.start_as_current_span("asynchronous"):
                await client.detect(pictures.red)
                assert [frame async for frame in client.stream([pictures.red])]

        def synchronous() -> None:
            with Client(address, timeout=TIMEOUT) as client, traces.callers.start_as_current_span("synchronous"):
                client.detect(pictures.red)
                assert list(client.stream([pictures.red]))

        await asyncio.to_thread(synchronous)
    for name in ("asynchronous", "synchronous"):
        assert [span.name for span in traces.inside(traces.only(name))] == [DETECT, DETECT_STREAM]


async def test_what_callers_send_is_bounded_and_may_be_nonsense(serve: Serve, pictures: Pictures) -> None:
    traces = Traces()
    async with serve(tracer=traces.tracer) as client:
        await client.failure(
            detect_with(client, pictures.red, ("traceparent", "nonsense"), ("baggage", "=,;"), model="x" * 10_000)
        )
        result = await stream_infer(client, [infer_request(pictures.red, identifier="y" * 10_000)])
    assert len(result) == 1
    assert traces.only(DETECT).parent is None
    assert own(traces.only(DETECT))["model"] == "x" * 128
    assert own(traces.only("message"))["message_id"] == "y" * 128


async def test_what_callers_or_the_ratio_leave_out_is_not_traced(serve: Serve, pictures: Pictures) -> None:
    traces = Traces(sample_ratio=0)
    async with serve(tracer=traces.tracer) as client:
        await client.detect(pictures.red)
        await detect_with(client, pictures.red, UNSAMPLED)
        await client.health()
        result = await exemplars(client)
    assert result == []
    assert traces.exporter.get_finished_spans() == ()


async def test_health_checks_are_not_traced(serve: Serve) -> None:
    traces = Traces()
    async with serve(tracer=traces.tracer) as client:
        await client.health()
    assert traces.exporter.get_finished_spans() == ()
