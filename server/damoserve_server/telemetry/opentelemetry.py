"""Records traces with OpenTelemetry. Only this module needs its packages, the extra `tracing`."""

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from threading import Thread

import grpc
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import Tracer as OtelTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from damoserve_server.telemetry.settings import TracingSettings
from damoserve_server.telemetry.spans import NO_SPAN, Fault, Fields, Span, Tracer

PREFIX = "damoserve."
"""The beginning of the names of our own attributes."""
TRACE_CONTEXT = TraceContextTextMapPropagator()
"""Reads the trace that a caller brings, and nothing else: its baggage is not used."""
CLOCK_STEP_NANOSECONDS = 10**8
"""A shift of the time of day by which somebody has set it: new spans follow. NTP shifts it slowly, and spans do not."""
LAST_SPANS_SECONDS = 2.0
"""Wait of a stopping server for the collector to accept the last spans."""
FAULTS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}
"""Codes that mark a span as failed; by the others the caller is at fault.

https://opentelemetry.io/docs/specs/semconv/rpc/grpc/
"""


class OpenTelemetryTracer(Tracer):
    """Makes spans of calls whose attributes follow OpenTelemetry's conventions for RPC, with our own besides."""

    def __init__(self, settings: TracingSettings, processor: SpanProcessor) -> None:
        """`processor` gets the spans, and is shut down with the tracer."""
        self._processor = processor
        self._offset = time.time_ns() - time.monotonic_ns()
        resource = Resource.create({SERVICE_NAME: settings.service_name, SERVICE_VERSION: version("damoserve")})

        def make_tracer(sampler: Sampler) -> OtelTracer:
            provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
            provider.add_span_processor(processor)
            return provider.get_tracer(__name__.partition(".")[0], version("damoserve"))

        self._calls = make_tracer(ParentBased(TraceIdRatioBased(settings.sample_ratio)))
        # A batch is in none of its requests' traces, so that these cannot decide; one that is traced is enough.
        self._batches = make_tracer(ALWAYS_ON)

    def start_call(self, method: str, metadata: Mapping[str, str | bytes]) -> Span:
        now, offset = time.monotonic(), time.time_ns() - time.monotonic_ns()
        if abs(offset - self._offset) > CLOCK_STEP_NANOSECONDS:
            self._offset = offset
        span = self._calls.start_span(
            method,
            TRACE_CONTEXT.extract(metadata, Context()),
            SpanKind.SERVER,
            {"rpc.system.name": "grpc", "rpc.method": method},
            start_time=_wall_time(now, self._offset),
        )
        return TracedSpan(self._calls, self._batches, span, self._offset) if span.is_recording() else NO_SPAN

    def close(self) -> None:
        # The library waits half a minute for a collector that does not answer, and offers no other limit.
        ending = Thread(target=self._processor.shutdown, name="last-spans", daemon=True)
        ending.start()
        ending.join(LAST_SPANS_SECONDS)


class TracedSpan(Span):
    """A span that is recorded, and may be linked to the span of its batch."""

    def __init__(self, calls: OtelTracer, batches: OtelTracer, span: OtelSpan, offset: int) -> None:
        """`offset`, in nanoseconds, added to the monotonic clock gives the time of day."""
        self._calls = calls
        self._batches = batches
        self._span = span
        self._offset = offset
        self._links: dict[str, list[Link]] = {}
        self.trace_id = format_trace_id(span.get_span_context().trace_id)

    @property
    def context(self) -> SpanContext:
        return self._span.get_span_context()

    def part(self, kind: str, began: float) -> Span:
        parent, start = set_span_in_context(self._span, Context()), _wall_time(began, self._offset)
        inner = self._calls.start_span(kind, parent, start_time=start)
        return TracedSpan(self._calls, self._batches, inner, self._offset)

    def batch(self, members: Sequence[Span], fields: Fields, began: float, failure: Exception | None) -> None:
        traced = [member for member in members if isinstance(member, TracedSpan)]
        links, start = [Link(member.context) for member in traced], _wall_time(began, self._offset)
        batch = self._batches.start_span(
            "batch", Context(), attributes=_prefixed(fields), links=links, start_time=start
        )
        for member in traced:
            member._links["inference"] = [Link(batch.get_span_context())]
        if failure is not None:
            batch.set_attribute("error.type", type(failure).__name__)
            batch.set_status(StatusCode.ERROR)
        batch.end(_wall_time(time.monotonic(), self._offset))

    def stages(self, began: float, seconds: Mapping[str, float]) -> None:
        parent = set_span_in_context(self._span, Context())
        for stage, duration in seconds.items():
            start, began = _wall_time(began, self._offset), began + duration
            span = self._calls.start_span(stage, parent, links=self._links.get(stage), start_time=start)
            span.end(_wall_time(began, self._offset))

    def end(self, code: grpc.StatusCode, fault: Fault | None, fields: Fields) -> None:
        self._span.set_attributes({**_prefixed(fields), "rpc.response.status_code": code.name})
        if code is not grpc.StatusCode.OK:
            self._span.set_attribute("error.type", code.name if fault is None else fault.reason)
        if code in FAULTS:
            self._span.set_status(Status(StatusCode.ERROR, None if fault is None else fault.message))
        self._span.end(_wall_time(time.monotonic(), self._offset))


def open_tracer(settings: TracingSettings) -> Tracer:
    """Returns a tracer that sends to the collector from a thread of its own."""
    return OpenTelemetryTracer(settings, BatchSpanProcessor(OTLPSpanExporter(settings.endpoint)))


def _prefixed(fields: Fields) -> dict[str, str | int | float]:
    return {PREFIX + name: value for name, value in fields.items()}


def _wall_time(monotonic: float, offset: int) -> int:
    """Returns the time of day in nanoseconds since 1970."""
    return round(1e9 * monotonic) + offset
