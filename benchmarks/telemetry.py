"""What traces and the access log cost each request.

`python benchmarks/telemetry.py` prints the processor time, in microseconds a request, of all that is told of one: its
record, its nine spans and their encoding for the collector (not the sending), its line of JSON in the log. The second
figure is that of the thread that answers; the rest is a thread beside it. The ways take turns.
"""

import argparse
import logging
import statistics
import time
from asyncio import Future
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import grpc
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from damoserve_profiles.manifest import Manifest
from damoserve_server.detection.request import DetectionRequest, DetectionResult, Timings
from damoserve_server.detection.trace import record_answer, record_batch, record_request
from damoserve_server.detection.worker import Job, JobTicket
from damoserve_server.models.catalogue import ActiveProfile
from damoserve_server.scheduling.policy import Requirements
from damoserve_server.scheduling.scheduler import Batch, Closing, Ticket
from damoserve_server.scheduling.selection import Reason, Tier
from damoserve_server.telemetry.logs import JsonFormatter
from damoserve_server.telemetry.opentelemetry import OpenTelemetryTracer
from damoserve_server.telemetry.records import Telemetry, access_log
from damoserve_server.telemetry.settings import TracingSettings
from damoserve_server.telemetry.spans import Tracer

METHOD = "damoserve.v1.DetectionService/Detect"
BURST = 1000
"""Requests, then the exporter is waited for: its queue holds 2048 spans, and more would be dropped, not encoded."""


class Encoding(SpanExporter):
    """Encodes what it is given."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS


@dataclass(frozen=True)
class Way:
    """`finish` returns when everything is told."""

    telemetry: Telemetry
    finish: Callable[[], object] = lambda: None


def tracing(ratio: float) -> Way:
    processor = BatchSpanProcessor(Encoding(), max_queue_size=20 * BURST)
    tracer = OpenTelemetryTracer(TracingSettings(sample_ratio=ratio), processor)
    return Way(Telemetry(tracer, access_log=False), processor.force_flush)


def answer(
    telemetry: Telemetry, request: DetectionRequest, result: DetectionResult, requirements: Requirements[ActiveProfile]
) -> None:
    """As the server does it."""
    record = telemetry.begin_call(METHOD, "0" * 32, {})
    record_request(record, request, Tier.BALANCED)
    job = Job(request, cast(Any, None), cast(Any, None), cast("Future[Any]", None), record)
    ticket: JobTicket = Ticket(requirements, 0.0, job, ready=True)
    record_batch(Batch(result.profile, (ticket,), request.arrival, request.deadline, Closing.ALL_READY), [result])
    record_answer(record, result, request.arrival)
    record.ended(grpc.StatusCode.OK)


def measure(way: Way) -> tuple[float, float]:
    """Microseconds a request: of all threads, and of this one."""
    now = time.monotonic()
    manifest = cast(Any, Manifest).model_construct(model="cells", profile="int8", version=1)
    profile = ActiveProfile(manifest, [], cast(Any, None), cast(Any, None))
    request = DetectionRequest(image=b"", arrival=now, deadline=now + 1)
    reason, timings = Reason.MOST_ACCURATE_IN_TIME, Timings(*(0.001,) * 7)
    result = DetectionResult(cast(Any, None), cast(Any, None), profile, reason, 1, timings)
    requirements = Requirements((profile,), request.deadline, request.deadline, now, 1)
    everything, own = time.process_time(), time.thread_time()
    for _ in range(BURST):
        answer(way.telemetry, request, result, requirements)
    own = time.thread_time() - own
    way.finish()
    return 1e6 * (time.process_time() - everything) / BURST, 1e6 * own / BURST


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    with open("/dev/null", "w") as nowhere:
        handler = logging.StreamHandler(nowhere)
        handler.setFormatter(JsonFormatter())
        access_log.addHandler(handler)
        access_log.setLevel(logging.INFO)
        access_log.propagate = False
        ways = {
            "neither": Way(Telemetry(Tracer(), access_log=False)),
            "access log": Way(Telemetry(Tracer(), access_log=True)),
            "tracing, not sampled": tracing(0.0),
            "tracing, sampled": tracing(1.0),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                taken[name].append(measure(way))
    for name, figures in taken.items():
        everything, own = (statistics.median(each) for each in zip(*figures, strict=True))
        print(f"{name:20}  {everything:6.1f} us, {own:6.1f} us of the answering thread")


if __name__ == "__main__":
    main()
