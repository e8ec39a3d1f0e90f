"""The account of requests: each is counted once, whichever protocol it came by, and whatever becomes of it."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import grpc

from damoserve_server.configuration.settings import Settings
from damoserve_server.detection.request import DetectionRequest, DetectionResult
from damoserve_server.errors import DamoserveError, DeadlineUnreachable
from damoserve_server.metrics.metrics import Metrics
from damoserve_server.metrics.requests import NO_TIER, Outcome, RequestMetrics
from damoserve_server.scheduling.selection import Tier
from damoserve_server.telemetry.records import current

REQUEST_METHODS = frozenset({"damoserve.v1.DetectionService/Detect", "inference.GRPCInferenceService/ModelInfer"})
"""Methods of which every call is a request, even one that is refused before anybody has read it."""

OUTCOMES = {
    grpc.StatusCode.INVALID_ARGUMENT: Outcome.INVALID,
    grpc.StatusCode.NOT_FOUND: Outcome.INVALID,
    grpc.StatusCode.UNAUTHENTICATED: Outcome.INVALID,
    grpc.StatusCode.PERMISSION_DENIED: Outcome.INVALID,
    grpc.StatusCode.UNIMPLEMENTED: Outcome.INVALID,
    grpc.StatusCode.FAILED_PRECONDITION: Outcome.REFUSED,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Outcome.REFUSED,
    grpc.StatusCode.UNAVAILABLE: Outcome.REFUSED,
    grpc.StatusCode.DEADLINE_EXCEEDED: Outcome.EXPIRED,
}
"""Outcome of a request that ends with an error of each status code; any other code is a failure."""

_counted: ContextVar[bool] = ContextVar("counted", default=False)
"""True in a task whose request has arrived, and so is counted."""


class RequestTracker:
    """Follows one request from its arrival to its end, which is counted once."""

    def __init__(self, metrics: RequestMetrics, tier: str, objective: float, deadline: float) -> None:
        """Counts the arrival. `objective` is in seconds; `deadline` is on the monotonic clock."""
        self._metrics = metrics
        self._tier = tier
        self._objective = objective
        self._deadline = deadline
        self._row = metrics.tiers[tier]
        self._row.arrive()

    def answered(self, result: DetectionResult) -> None:
        """Ends the account of a request by its answer, in time or late."""
        series = self._metrics.answered(result.profile.key, self._tier, result.reason)
        series.routed.inc()
        series.accuracy.observe(result.profile.accuracy)
        for histogram, seconds in zip(series.stages, result.timings.stages, strict=True):
            histogram.observe(seconds)
        total = result.timings.total
        trace_id = current.get().span.trace_id
        series.request.observe(total, {"trace_id": trace_id} if trace_id else None)
        self._row.end(Outcome.IN_TIME if total <= self._objective else Outcome.LATE)

    def failed(self, error: BaseException) -> None:
        """Ends the account of a request by an error, or by the caller's cancellation."""
        if isinstance(error, asyncio.CancelledError):
            self._row.end(Outcome.CANCELLED if time.monotonic() < self._deadline else Outcome.EXPIRED)
        else:
            self._row.end(outcome_of(error))

    def dropped(self) -> None:
        """Ends the account of a request whose place a newer frame of its stream took."""
        self._row.end(Outcome.REFUSED)


class RequestAccounting:
    """Counts every request of every protocol: how many have arrived, and what became of each."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._default_tier = settings.default_tier
        self._objectives = {tier: settings.tiers[tier].objective_ms / 1000 for tier in Tier}
        self.metrics = metrics.requests

    def track(self, request: DetectionRequest) -> RequestTracker:
        """Begins the account of a request that has arrived; call one method of the tracker when it ends."""
        _counted.set(True)
        if request.profile is not None:
            return RequestTracker(self.metrics, NO_TIER, request.deadline - request.arrival, request.deadline)
        tier = request.tier or self._default_tier
        return RequestTracker(self.metrics, tier, self._objectives[tier], request.deadline)

    @contextmanager
    def answering(self, requests: Sequence[DetectionRequest]) -> Iterator[list[DetectionResult]]:
        """Tracks requests that are answered as a whole: takes a result for each, or all end by what is raised."""
        trackers = [self.track(request) for request in requests]
        results: list[DetectionResult] = []
        try:
            yield results
        except BaseException as error:
            for tracker in trackers:
                tracker.failed(error)
            raise
        for tracker, result in zip(trackers, results, strict=True):
            tracker.answered(result)

    def count_reason(self, error: DamoserveError) -> None:
        """Counts the reason of a call, frame or message that failed."""
        self.metrics.refused.labels(error.reason).inc()

    def count_unread(self, error: DamoserveError) -> None:
        """Counts a request that failed before it had arrived; one that had is counted already."""
        if not _counted.get():
            row = self.metrics.tiers[NO_TIER]
            row.arrive()
            row.end(outcome_of(error))


def outcome_of(error: BaseException) -> Outcome:
    """Returns the outcome of a request that ends with this error."""
    if isinstance(error, DeadlineUnreachable):
        return Outcome.REFUSED
    return OUTCOMES.get(error.code, Outcome.FAILED) if isinstance(error, DamoserveError) else Outcome.FAILED
