"""Traces of real calls, as they arrive at an exporter in memory and at a collector that speaks OTLP."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from pydantic import ValidationError

from damoserve.kserve.v2 import inference_pb2 as kserve_pb
from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_client import AsyncClient, Client
from damoserve_server.detector import Timings
from damoserve_server.scheduler import Closing
from damoserve_server.telemetry.settings import TracingSettings

pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="the extra tracing is not installed")

from opentelemetry import propagate
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_trace_id

from damoserve_server.telemetry.opentelemetry import OpenTelemetryTracer

PATIENCE = 20.0
ROUNDING = 1000
"""Nanoseconds: the stages are added up in seconds."""
STAGES = [stage.name for stage in fields(Timings)]
DETECT = "damoserve.v1.DetectionService/Detect"
DETECT_STREAM = "damoserve.v1.DetectionService/DetectStream"
INFER = "inference.GRPCInferenceService/ModelInfer"
UNSAMPLED = ("traceparent", f"00-{'1' * 32}-{'2' * 16}-00")


@dataclass
class Traces:
    """What a server tells, and callers' spans among it."""

    sample_ratio: float = 1.0
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)

    def __post_init__(self):
        processor = SimpleSpanProcessor(self.exporter)
        self.tracer = OpenTelemetryTracer(TracingSettings(sample_ratio=self.sample_ratio), processor)
        callers = TracerProvider(shutdown_on_exit=False)
        callers.add_span_processor(processor)
        self.callers = callers.get_tracer("caller")

    def named(self, name):
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def only(self, name):
        (span,) = self.named(name)
        return span

    def inside(self, outer):
        """The spans right inside another, by their start."""
        spans = self.exporter.get_finished_spans()
        inner = [span for span in spans if span.parent is not None and span.parent.span_id == outer.context.span_id]
        return sorted(inner, key=lambda span: (span.start_time, span.end_time))

    async def detect(self, client, image, name="caller", **wishes):
        """A call inside a span of the caller."""
        with self.callers.start_as_current_span(name):
            carrier = {}
            propagate.inject(carrier)
            return await detect_with(client, image, *carrier.items(), **wishes)


async def detect_with(client, image, *metadata, **wishes):
    request = pb.DetectRequest(image=pb.Image(content=image), **wishes)
    return await pb_grpc.DetectionServiceStub(client.channel).Detect(request, timeout=PATIENCE, metadata=metadata)


def own(span):
    """The span's own attributes, without their prefix."""
    return {k.removeprefix("damoserve."): v for k, v in span.attributes.items() if k.startswith("damoserve.")}


def follow_one_another(spans, outer):
    times = [outer.start_time, *(time for span in spans for time in (span.start_time, span.end_time)), outer.end_time]
    return times == sorted(times)


def assert_stages(traces, outer):
    stages = traces.inside(outer)
    assert sorted(stage.name for stage in stages) == sorted(STAGES)
    assert follow_one_another(stages, outer)
    assert {stage.context.trace_id for stage in stages} == {outer.context.trace_id}


def test_a_trace_has_the_callers_span_ours_for_each_stage_and_the_batch(serve, pictures, valve):
    traces = Traces()

    async def scenario():
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
            return await together

    answers = asyncio.run(scenario())
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


def test_attributes_of_a_call_say_who_served_it_and_have_no_content(serve, pictures):
    traces = Traces()

    async def scenario():
        async with serve(tracer=traces.tracer, tiers={"balanced": {"objective_ms": 5000}}) as client:
            await detect_with(client, pictures.red, ("x-request-id", "mine"), ("authorization", "Bearer hush"))

    asyncio.run(scenario())
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
    ("wishes", "reason", "status"),
    [
        ({"score_threshold": 2}, "ARGUMENT_OUT_OF_RANGE", StatusCode.UNSET),
        ({"model": "birds"}, "MODEL_NOT_FOUND", StatusCode.UNSET),
        ({"latency_budget": Duration(nanos=1)}, "DEADLINE_EXPIRED", StatusCode.ERROR),
    ],
)
def test_a_refusal_is_recorded_with_its_reason(serve, pictures, wishes, reason, status):
    traces = Traces()

    async def scenario():
        async with serve(tracer=traces.tracer) as client:
            return await client.failure(traces.detect(client, pictures.red, **wishes))

    failure = asyncio.run(scenario())
    call = traces.only(DETECT)
    assert failure.reason == reason
    assert call.parent.span_id == traces.only("caller").context.span_id
    assert (call.attributes["error.type"], call.status.status_code) == (reason, status)
    assert call.attributes["rpc.response.status_code"] == failure.code.name


def test_a_batch_that_fails_is_recorded_as_failed(serve, pictures, valve):
    traces = Traces()

    async def scenario():
        async with serve(valve.load, tracer=traces.tracer) as client:
            valve.fault = RuntimeError("secret of the engine")
            return await client.failure(client.detect(pictures.red))

    assert asyncio.run(scenario()).code is grpc.StatusCode.INTERNAL
    call, batch = traces.only(DETECT), traces.only("batch")
    assert (call.attributes["error.type"], call.status.status_code) == ("INTERNAL", StatusCode.ERROR)
    assert (batch.attributes["error.type"], batch.status.status_code) == ("RuntimeError", StatusCode.ERROR)
    assert [link.context for link in batch.links] == [call.context]
    assert "secret" not in call.to_json() + batch.to_json()


def test_a_call_that_its_caller_leaves_is_recorded_as_cancelled(serve, pictures, valve):
    traces = Traces()

    async def scenario():
        async with serve(valve.load, tracer=traces.tracer) as client:
            valve.shut()
            call = asyncio.ensure_future(client.detect(pictures.red))
            await valve.entered()
            call.cancel()
            handled = {"grpc_method": "Detect", "grpc_code": "CANCELLED"}
            await client.until(lambda now: now.sum("grpc_server_handled_total", **handled) == 1)
            valve.open()

    asyncio.run(scenario())
    assert traces.only(DETECT).attributes["error.type"] == "CANCELLED"


def test_a_stream_has_a_span_and_each_frame_one_inside(serve, pictures):
    traces = Traces()

    async def scenario():
        async with serve(tracer=traces.tracer) as client:
            call = pb_grpc.DetectionServiceStub(client.channel).DetectStream(timeout=PATIENCE)
            await call.write(pb.DetectStreamRequest(options=pb.StreamOptions(profile="quick")))
            for identifier, image in [(7, pictures.red), (8, b"no image")]:
                await call.write(pb.DetectStreamRequest(frame=pb.Frame(id=identifier, image=pb.Image(content=image))))
            await call.done_writing()
            return [answer.frame_id async for answer in call]

    assert asyncio.run(scenario()) == [7, 8]
    stream = traces.only(DETECT_STREAM)
    frames = {own(frame)["frame_id"]: frame for frame in traces.inside(stream)}
    assert [frame.name for frame in frames.values()] == ["frame", "frame"]
    assert all(follow_one_another([frame], stream) for frame in frames.values())
    assert_stages(traces, frames[7])
    assert own(frames[7])["profile"] == "quick"
    assert frames[8].attributes["error.type"] == "IMAGE_UNDECODABLE"


def test_a_frame_that_is_dropped_has_a_span_that_says_so(serve, pictures, valve):
    traces = Traces()

    async def scenario():
        async with serve(valve.load, tracer=traces.tracer, stream_window=1) as client:
            valve.shut()
            call = pb_grpc.DetectionServiceStub(client.channel).DetectStream(timeout=PATIENCE)
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
            return [(answer.frame_id, answer.WhichOneof("outcome")) async for answer in call]

    answers = asyncio.run(scenario())
    assert [identifier for identifier, _ in answers] == [0, 1, 2]
    outcomes = {own(frame)["frame_id"]: own(frame).get("outcome") for frame in traces.named("frame")}
    assert outcomes == {0: None, 1: "dropped_server_behind", 2: None}


async def infer(client, *images):
    contents = kserve_pb.InferTensorContents(bytes_contents=images)
    tensor = kserve_pb.ModelInferRequest.InferInputTensor(
        name="images", datatype="BYTES", shape=[len(images)], contents=contents
    )
    method = client.channel.unary_unary(
        f"/{INFER}",
        request_serializer=kserve_pb.ModelInferRequest.SerializeToString,
        response_deserializer=kserve_pb.ModelInferResponse.FromString,
    )
    return await method(kserve_pb.ModelInferRequest(model_name="colours", inputs=[tensor]), timeout=PATIENCE)


def test_calls_by_kserve_are_traced_and_each_of_several_images(serve, pictures):
    traces = Traces()

    async def scenario():
        async with serve(tracer=traces.tracer) as client:
            await infer(client, pictures.red)
            await infer(client, pictures.red, pictures.red)

    asyncio.run(scenario())
    alone, several = traces.named(INFER)
    assert_stages(traces, alone)
    images = traces.inside(several)
    assert sorted((image.name, own(image)["image_id"]) for image in images) == [("image", 0), ("image", 1)]
    for image in images:
        assert_stages(traces, image)


def test_our_client_names_the_span_that_it_is_called_in(serve, pictures):
    traces = Traces()

    async def scenario():
        async with serve(tracer=traces.tracer) as server:
            address = f"127.0.0.1:{server.application.port}"
            async with AsyncClient(address, timeout=PATIENCE) as client:
                with traces.callers.start_as_current_span("asynchronous"):
                    await client.detect(pictures.red)
                    assert [frame async for frame in client.stream([pictures.red])]

            def synchronous():
                with Client(address, timeout=PATIENCE) as client, traces.callers.start_as_current_span("synchronous"):
                    client.detect(pictures.red)
                    assert list(client.stream([pictures.red]))

            await asyncio.to_thread(synchronous)

    asyncio.run(scenario())
    for name in ("asynchronous", "synchronous"):
        assert [span.name for span in traces.inside(traces.only(name))] == [DETECT, DETECT_STREAM]


def test_what_callers_or_the_ratio_leave_out_is_not_traced(serve, pictures):
    traces = Traces(sample_ratio=0)

    async def scenario():
        async with serve(tracer=traces.tracer) as client:
            await client.detect(pictures.red)
            await detect_with(client, pictures.red, UNSAMPLED)
            await client.health()
            return await exemplars(client)

    assert asyncio.run(scenario()) == []
    assert traces.exporter.get_finished_spans() == ()


def test_health_checks_are_not_traced(serve):
    traces = Traces()

    async def scenario():
        async with serve(tracer=traces.tracer) as client:
            await client.health()

    asyncio.run(scenario())
    assert traces.exporter.get_finished_spans() == ()


async def exemplars(client):
    """Of all buckets of damoserve_request_seconds."""
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    url = urllib.request.Request(f"http://127.0.0.1:{client.application.metrics_port}/metrics", headers=accept)
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=PATIENCE).read().decode())
    families = [each for each in text_string_to_metric_families(text) if each.name == "damoserve_request_seconds"]
    return [sample.exemplar.labels for family in families for sample in family.samples if sample.exemplar]


def test_the_access_log_names_the_trace_of_a_call(serve, pictures, caplog):
    traces = Traces()

    async def scenario():
        async with serve(tracer=traces.tracer, access_log=True) as client:
            with caplog.at_level(logging.INFO, "damoserve_server.access_log"):
                await client.detect(pictures.red)

    asyncio.run(scenario())
    (line,) = [record.fields for record in caplog.records if record.name == "damoserve_server.access_log"]
    assert line["trace_id"] == format_trace_id(traces.only(DETECT).context.trace_id)


def test_the_histogram_names_the_trace_of_a_request(serve, pictures):
    traces = Traces()

    async def scenario():
        async with serve(tracer=traces.tracer) as client:
            await client.detect(pictures.red)
            return await exemplars(client)

    labels = asyncio.run(scenario())
    assert labels == [{"trace_id": format_trace_id(traces.only(DETECT).context.trace_id)}]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans by OTLP."""

    def __init__(self):
        self.resources = []
        self.answers = threading.Event()
        self.answers.set()

    def Export(self, request, context):
        self.resources += request.resource_spans
        assert self.answers.wait(PATIENCE)
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def names(self):
        scopes = [scope for resource in self.resources for scope in resource.scope_spans]
        return sorted(span.name for scope in scopes for span in scope.spans)


@pytest.fixture
def collector():
    server = grpc.server(ThreadPoolExecutor(1))
    collector = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield collector
    collector.answers.set()
    server.stop(None).wait()


def test_spans_arrive_at_a_collector_before_the_server_has_stopped(serve, pictures, collector):
    async def scenario():
        tracing = {"endpoint": collector.endpoint, "sample_ratio": 1, "service_name": "eyes"}
        async with serve(tracing=tracing) as client:
            await client.detect(pictures.red)

    asyncio.run(scenario())
    assert collector.names == sorted([DETECT, "batch", *STAGES])
    attributes = {each.key: each.value.string_value for each in collector.resources[0].resource.attributes}
    assert attributes["service.name"] == "eyes"


def test_a_collector_that_does_not_answer_keeps_no_server_from_stopping(serve, pictures, collector, monkeypatch):
    """OpenTelemetry alone would wait for 30 s."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")

    async def scenario():
        async with (
            asyncio.timeout(PATIENCE),
            serve(tracing={"endpoint": collector.endpoint, "sample_ratio": 1}) as client,
        ):
            collector.answers.clear()
            await client.detect(pictures.red)

    asyncio.run(scenario())
    assert not collector.answers.is_set()


def test_an_endpoint_is_an_address_with_its_scheme():
    with pytest.raises(ValidationError, match="endpoint"):
        TracingSettings(endpoint="127.0.0.1:4317")


def without_opentelemetry(script):
    block = "import sys; sys.modules['opentelemetry'] = None\n"
    environment = {**os.environ, "DAMOSERVE_PORT": "0", "DAMOSERVE_METRICS_PORT": "0"}
    return subprocess.run(
        [sys.executable, "-c", block + script], env=environment, capture_output=True, text=True, check=False
    )


def test_without_the_packages_the_server_serves(repository):
    script = f"""
import asyncio, signal, os
from damoserve_server.app import serve
from damoserve_server.settings import Settings
settings = Settings(repository={str(repository)!r}, access_log=True, workers=1)
asyncio.run(serve(settings, lambda line: os.kill(os.getpid(), signal.SIGTERM)))
print("served", [name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = without_opentelemetry(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "served ['opentelemetry']\n"  # the one that is blocked


def test_without_the_packages_an_endpoint_is_an_error_that_says_what_to_install(repository):
    script = """
import os
os.environ["DAMOSERVE_TRACING__ENDPOINT"] = "http://127.0.0.1:4317"
import typer
from damoserve_server.cli import serve
typer.run(serve)
"""
    done = without_opentelemetry(script)
    assert done.returncode == 1
    assert done.stderr.startswith("damoserve cannot start: tracing: ")
    assert "pip install 'damoserve[tracing]'" in done.stderr
    assert "Traceback" not in done.stderr
