"""What a server under test tells of its calls. Importing this skips tests where OpenTelemetry is not installed."""

import asyncio
import urllib.request
from dataclasses import dataclass, field, fields

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_server.detection.request import Timings
from damoserve_server.telemetry.settings import TracingSettings
from tests.support.timeouts import TIMEOUT

pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="the extra tracing is not installed")

from opentelemetry import propagate
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from damoserve_server.telemetry.opentelemetry import OpenTelemetryTracer

STAGES = [stage.name for stage in fields(Timings)]
DETECT = "damoserve.v1.DetectionService/Detect"
DETECT_STREAM = "damoserve.v1.DetectionService/DetectStream"
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

    async def detect(self, client, image, name="caller", **fields):
        """A call inside a span of the caller."""
        with self.callers.start_as_current_span(name):
            carrier = {}
            propagate.inject(carrier)
            return await detect_with(client, image, *carrier.items(), **fields)


async def detect_with(client, image, *metadata, **fields):
    request = pb.DetectRequest(image=pb.Image(content=image), **fields)
    return await pb_grpc.DetectionServiceStub(client.channel).Detect(request, timeout=TIMEOUT, metadata=metadata)


def own(span):
    """The span's own attributes, without their prefix."""
    return {k.removeprefix("damoserve."): v for k, v in span.attributes.items() if k.startswith("damoserve.")}


def follow_one_another(spans, outer):
    times = [outer.start_time, *(time for span in spans for time in (span.start_time, span.end_time)), outer.end_time]
    return times == sorted(times)


def assert_stages(traces, outer):
    stages = traces.inside(outer)
    assert [stage.name for stage in stages] == STAGES
    assert follow_one_another(stages, outer)
    assert {stage.context.trace_id for stage in stages} == {outer.context.trace_id}


async def exemplars(client):
    """Of all buckets of damoserve_request_seconds."""
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    url = urllib.request.Request(f"http://127.0.0.1:{client.application.metrics_port}/metrics", headers=accept)
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=TIMEOUT).read().decode())
    families = [each for each in text_string_to_metric_families(text) if each.name == "damoserve_request_seconds"]
    return [sample.exemplar.labels for family in families for sample in family.samples if sample.exemplar]
