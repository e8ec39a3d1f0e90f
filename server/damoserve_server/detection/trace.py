"""Notes of a request, its answer and its batch, for tracing and the access log."""

from collections.abc import Sequence
from dataclasses import fields

from damoserve_server.detection.request import DetectionRequest, DetectionResult
from damoserve_server.detection.worker import JobBatch
from damoserve_server.scheduling.selection import Tier
from damoserve_server.telemetry.records import CallRecord
from damoserve_server.telemetry.spans import NO_SPAN, Fields


def record_request(record: CallRecord, request: DetectionRequest, tier: Tier | None) -> None:
    """Notes in the record of a call what the caller has asked for."""
    record.asked(tier=tier, profile=request.profile, model=request.model)


def record_answer(record: CallRecord, result: DetectionResult, arrival: float) -> None:
    """Notes in the record of a call which profile has served it, and the seconds of each stage."""
    if not record.recording:
        return
    manifest, timings = result.profile.manifest, result.timings
    known: Fields = {
        "model": manifest.model,
        "model_version": manifest.version,
        "profile": manifest.profile,
        "selection_reason": result.reason,
        "batch_size": result.batch_size,
    }
    record.answered(known, arrival, {stage.name: getattr(timings, stage.name) for stage in fields(timings)})


def record_batch(batch: JobBatch, outcomes: Sequence[object]) -> None:
    """Adds a span for a batch; call it when the batch has ended, and before its requests are answered."""
    jobs = (ticket.payload for ticket in batch.tickets)
    spans = [job.record.span for job in jobs if job is not None and job.record.span is not NO_SPAN]
    if spans:
        model, name = batch.profile.key
        known: Fields = {
            "model": model,
            "model_version": batch.profile.manifest.version,
            "profile": name,
            "batch_size": len(outcomes),
            "closing": batch.closing,
        }
        failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        spans[0].batch(spans, known, batch.started, failures[0] if len(failures) == len(outcomes) else None)
