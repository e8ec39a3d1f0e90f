"""What a server under test tells of its calls. Importing this skips tests where OpenTelemetry is not installed."""

import asyncio
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, cast

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_server.detection.request import Timings
from damoserve_server.telemetry.settings import TracingSettings
from tests.support.server import ServerClient
from tests.support.timeouts import TIMEOUT

pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="the extra tracing is not installed")

from opentelemetry import propagate
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, Status

from damoserve_server.telemetry.opentelemetry import OpenTelemetryTracer

STAGES = [stage.name for stage in fields(Timings)]
DETECT = "damoserve.v1.DetectionService/Detect"
DETECT_STREAM = "damoserve.v1.DetectionService/DetectStream"
UNSAMPLED = ("traceparent", f"00-{'1' * 32}-{'2' * 16}-00")


class FinishedSpan(Protocol):
    """A span as exporters get it; the type of the SDK is also that of spans that have not ended."""

    name: str
    kind: SpanKind
    context: SpanContext
    parent: SpanContext | None
    start_time: int
    end_time: int
    attributes: Mapping[str, Any]
    links: Sequence[Link]
    status: Status
    resource: Resource

    def to_json(self) -> str:
        """Writes all of it."""


@dataclass
class Traces:
    """What a server tells, and callers' spans among it."""

    sample_ratio: float = 1.0
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)

    def __post_init__(self) -> None:
        processor = SimpleSpanProcessor(self.exporter)
        self.tracer = OpenTelemetryTracer(TracingSettings(sample_ratio=self.sample_ratio), processor)
        callers = TracerProvider(shutdown_on_exit=False)
        callers.add_span_processor(processor)
        self.callers = callers.get_tracer("caller")

    def named(self, name: str) -> list[FinishedSpan]:
        return [span for span in self._finished() if span.name == name]

    def only(self, name: str) -> FinishedSpan:
        (span,) = self.named(name)
        return span

    def inside(self, outer: FinishedSpan) -> list[FinishedSpan]:
        """The spans right inside another, by their start."""
        inner = [
            span
            for span in self._finished()
            if span.parent is not None and span.parent.span_id == outer.context.span_id
        ]
        return sorted(inner, key=lambda span: (span.start_time, span.end_time))

    def _finished(self) -> tuple[FinishedSpan, ...]:
        return cast(tuple[FinishedSpan, ...], self.exporter.get_finished_spans())

    async def detect(
        self, client: ServerClient, image: bytes, name: str = "caller", **fields: Any
    ) -> pb.DetectResponse:
        """A call inside a span of the caller."""
        with self.callers.start_as_current_span(name):
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            return await detect_with(client, image, *carrier.items(), **fields)


async def detect_with(
    client: ServerClient, image: bytes, *metadata: tuple[str, str], **fields: Any
) -> pb.DetectResponse:
    request = pb.DetectRequest(image=pb.Image(content=image), **fields)
    return await pb_grpc.DetectionServiceStub(client.channel).Detect(request, timeout=TIMEOUT, metadata=metadata)


def own(span: FinishedSpan) -> dict[str, Any]:
    """The span's own attributes, without their prefix."""
    return {k.removeprefix("damoserve."): v for k, v in span.attributes.items() if k.startswith("damoserve.")}


def follow_one_another(spans: Iterable[FinishedSpan], outer: FinishedSpan) -> bool:
    times = [outer.start_time, *(time for span in spans for time in (span.start_time, span.end_time)), outer.end_time]
    return times == sorted(times)


def assert_stages(traces: Traces, outer: FinishedSpan) -> None:
    stages = traces.inside(outer)
    assert [stage.name for stage in stages] == STAGES
    assert follow_one_another(stages, outer)
    assert {stage.context.trace_id for stage in stages} == {outer.context.trace_id}


async def exemplars(client: ServerClient) -> list[dict[str, str]]:
    """Of all buckets of damoserve_request_seconds."""
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    url = urllib.request.Request(f"http://127.0.0.1:{client.application.metrics_port}/metrics", headers=accept)
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=TIMEOUT).read().decode())
    parsed = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]  # that of the other format has types
    families = [each for each in parsed if each.name == "damoserve_request_seconds"]
    return [sample.exemplar.labels for family in families for sample in family.samples if sample.exemplar]
