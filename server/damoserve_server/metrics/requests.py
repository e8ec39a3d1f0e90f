"""Requests: how many there are, how they end, which profile serves them and where their time goes."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from damoserve_server import errors
from damoserve_server.images import DECODE_FAILURES
from damoserve_server.router import Reason, Tier

STAGES = ("decode_wait", "decode", "queue", "batch_wait", "inference", "postprocess", "respond")
"""In their order; the names are those of `detector.Timings`."""
FRAME_OUTCOMES = ("answered", "refused", "dropped_server_behind", "dropped_client_behind")
NO_TIER = "none"
"""The tier label of a request that names its profile, or that could not be read."""
TIERS = (*Tier, NO_TIER)


class Outcome(StrEnum):
    """How a request ends."""

    IN_TIME = "in_time"
    LATE = "late"
    REFUSED = "refused"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    INVALID = "invalid"
    FAILED = "failed"


PLACES = {outcome: place for place, outcome in enumerate(Outcome, 1)}


@dataclass(frozen=True)
class Answered:
    """The series of answers of one kind; to look each up by its labels takes as long as to count."""

    routed: Counter
    request: Histogram
    stages: tuple[Histogram, ...]
    """In the order of STAGES."""
    accuracy: Summary


class Ends(Collector):
    """Requests that have arrived, and their ends. Only the event loop counts.

    What belongs to a tier stands in one list, as in `calls.Calls`: what has arrived is in flight or has ended, at every
    moment.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counts = {str(tier): [0] * (1 + len(Outcome)) for tier in TIERS}
        registry.register(self)

    def arrive(self, tier: str) -> None:
        self._counts[tier][0] += 1

    def end(self, tier: str, outcome: Outcome) -> None:
        self._counts[tier][PLACES[outcome]] += 1

    def collect(self) -> Iterator[Metric]:
        ended = CounterMetricFamily(
            "damoserve_requests",
            "Requests by their end. `in_time`: answered within the tier's objective, or without a tier within the "
            "deadline; `late`: answered after the objective; `refused`: not let in or given up, through no fault of the"
            " caller, dropped frames of streams included; `expired`: the deadline passed; `cancelled`: the caller left;"
            " `invalid`: the caller's fault; `failed`: a fault of the server. Each frame of a stream and each image of "
            "a KServe request is a request. Tier `none`: the request named its profile, or could not be read.",
            labels=["tier", "outcome"],
        )
        in_flight = GaugeMetricFamily(
            "damoserve_requests_in_flight", "Requests that have arrived and have no end yet.", labels=["tier"]
        )
        for tier, counts in self._counts.items():
            arrived, *ends = counts.copy()
            in_flight.add_metric([tier], arrived - sum(ends))
            for outcome, count in zip(Outcome, ends, strict=True):
                ended.add_metric([tier, outcome], count)
        yield ended
        yield in_flight


class RequestMetrics:
    """See the module."""

    def __init__(self, registry: CollectorRegistry, edges: tuple[float, ...], stage_edges: tuple[float, ...]) -> None:
        """The edges of the histograms are in seconds."""
        profile = ["model", "profile"]
        self.ends = Ends(registry)
        self.refused = Counter(
            "damoserve_refused",
            "Calls and frames of streams that failed; the reasons are those of the table in "
            "`proto/damoserve/v1/detection.proto`.",
            ["reason"],
            registry=registry,
        )
        self.routed = Counter(
            "damoserve_routed",
            "Choices of a profile. Reason `quickest`: none was expected to meet the tier's objective. Tier `none`: the "
            "request named its profile.",
            [*profile, "tier", "reason"],
            registry=registry,
        )
        self.seconds = Histogram(
            "damoserve_request_seconds",
            "Time from the arrival of an answered request to its answer.",
            [*profile, "tier"],
            registry=registry,
            buckets=edges,
        )
        self.stage_seconds = Histogram(
            "damoserve_stage_seconds",
            "Time of an answered request in each stage; they follow one another and add up to "
            "`damoserve_request_seconds`. `decode_wait`: until a thread begins to decode; `queue`: until a worker takes"
            " the image, but for `batch_wait`: a worker was free and held the batch back for company; `inference`: the "
            "network, for the whole batch; `respond`: until the event loop has the answer.",
            [*profile, "stage"],
            registry=registry,
            buckets=stage_edges,
        )
        self.served_accuracy = Summary(
            "damoserve_served_accuracy",
            "Average precision (0 to 1, by the manifest) of the profile that served each answered request.",
            ["model", "tier"],
            registry=registry,
        )
        self.unused_answers = Counter(
            "damoserve_unused_answers",
            "Images computed though the caller had left or the deadline had passed.",
            profile,
            registry=registry,
        )
        self.decode_failures = Counter(
            "damoserve_decode_failures", "Images that were not accepted, by kind.", ["kind"], registry=registry
        )
        self.frames = Counter(
            "damoserve_stream_frames",
            "Frames of streams whose answer was sent, by end.",
            ["outcome"],
            registry=registry,
        )
        self._answered: dict[tuple[tuple[str, str], str, Reason], Answered] = {}
        for reason in errors.reasons():
            self.refused.labels(reason)
        for kind in DECODE_FAILURES.values():
            self.decode_failures.labels(kind)
        for outcome in FRAME_OUTCOMES:
            self.frames.labels(outcome)

    def answered(self, profile: tuple[str, str], tier: str, reason: Reason) -> Answered:
        kind = profile, tier, reason
        if kind not in self._answered:
            self._answered[kind] = Answered(
                self.routed.labels(*profile, tier, reason),
                self.seconds.labels(*profile, tier),
                tuple(self.stage_seconds.labels(*profile, stage) for stage in STAGES),
                self.served_accuracy.labels(profile[0], tier),
            )
        return self._answered[kind]

    def add_profile(self, profile: tuple[str, str]) -> None:
        """Creates the series of a profile."""
        for tier in Tier:
            for reason in (Reason.MOST_ACCURATE_IN_TIME, Reason.QUICKEST):
                self.answered(profile, tier, reason)
        self.answered(profile, NO_TIER, Reason.REQUESTED)
        self.unused_answers.labels(*profile)
