"""Metrics of requests: how many there are, how they end, which profile serves them, where their time goes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Summary
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from damoserve_server import errors
from damoserve_server.inputs.images import DECODE_FAILURES
from damoserve_server.metrics.rows import Distribution, Histogram, Numbers, Row, Rows
from damoserve_server.scheduling.selection import Reason, Tier

STAGES = ("decode_wait", "decode", "queue", "batch_wait", "inference", "postprocess", "respond")
"""The stages of a request in their order; the names are those of `detection.request.Timings`."""
FRAME_OUTCOMES = ("answered", "refused", "dropped_server_behind", "dropped_client_behind")
"""Ends of a frame of a stream."""
NO_TIER = "none"
"""The tier label of a request that names its profile, or that could not be read."""
ENDED = Metric(
    "damoserve_requests",
    "Requests by their end. `in_time`: answered within the tier's objective, or without a tier within the deadline; "
    "`late`: answered after the objective; `refused`: not let in or given up, through no fault of the caller, dropped "
    "frames of streams included; `expired`: the deadline passed; `cancelled`: the caller left; `invalid`: the caller's "
    "fault; `failed`: a fault of the server. Each frame of a stream and each image of a KServe request is a request. "
    "Tier `none`: the request named its profile, or could not be read.",
    "counter",
)
IN_FLIGHT = Metric("damoserve_requests_in_flight", "Requests that have arrived and have no end yet.", "gauge")


class Outcome(StrEnum):
    """The end of a request; `ENDED` explains each."""

    IN_TIME = "in_time"
    LATE = "late"
    REFUSED = "refused"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    INVALID = "invalid"
    FAILED = "failed"


COLUMNS = {outcome: column for column, outcome in enumerate(Outcome, 1)}
"""The number of a row that counts the requests with each end; the first counts those that have arrived."""


@dataclass(frozen=True)
class AnsweredSeries:
    """The series of answers with the same labels, kept: to look each up takes as long as to count."""

    routed: Counter
    request: Distribution
    stages: tuple[Distribution, ...]
    """The histogram of each stage, in the order of STAGES."""
    accuracy: Summary


class TierRow(Row):
    """Requests of one tier: how many have arrived, and how many of them have come to each end."""

    def __init__(self, tier: str) -> None:
        super().__init__(1 + len(Outcome))
        self._labels = {"tier": tier}

    def arrive(self) -> None:
        self.numbers[0] += 1

    def end(self, outcome: Outcome) -> None:
        self.numbers[COLUMNS[outcome]] += 1

    def samples(self, numbers: Numbers) -> Sequence[Sequence[Sample]]:
        arrived, *ended = numbers
        ends = [
            Sample("damoserve_requests_total", {**self._labels, "outcome": outcome}, count)
            for outcome, count in zip(Outcome, ended, strict=True)
        ]
        return ends, [Sample("damoserve_requests_in_flight", self._labels, arrived - sum(ended))]


@dataclass(frozen=True)
class Totals:
    """Numbers of requests of all tiers since the start."""

    arrived: int
    ended: Mapping[Outcome, int]

    @property
    def inside(self) -> int:
        """Requests that have arrived and have no end yet."""
        return self.arrived - sum(self.ended.values())


class RequestsByTier(Rows):
    """Requests by tier. At every moment what has arrived is in flight or has ended."""

    def __init__(self) -> None:
        super().__init__(ENDED, IN_FLIGHT)
        self._tiers = {str(tier): TierRow(str(tier)) for tier in (*Tier, NO_TIER)}

    def __getitem__(self, tier: str) -> TierRow:
        return self._tiers[tier]

    def rows(self) -> Iterable[Row]:
        return self._tiers.values()

    def totals(self) -> Totals:
        counted = [sum(numbers) for numbers in zip(*(row.numbers for row in self._tiers.values()), strict=True)]
        return Totals(int(counted[0]), {outcome: int(counted[column]) for outcome, column in COLUMNS.items()})


class RequestMetrics:
    """The metrics of requests."""

    def __init__(self, registry: CollectorRegistry, edges: Sequence[float], stage_edges: Sequence[float]) -> None:
        """`edges` are those of requests and `stage_edges` those of stages, in seconds."""
        profile = ["model", "profile"]
        self.tiers = RequestsByTier()
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
            edges,
        )
        self.stage_seconds = Histogram(
            "damoserve_stage_seconds",
            "Time of an answered request in each stage; they follow one another and add up to "
            "`damoserve_request_seconds`. `decode_wait`: until a thread begins to decode; `queue`: until a worker takes"
            " the image, but for `batch_wait`: a worker was free and held the batch back for company; `inference`: the "
            "network, for the whole batch; `respond`: until the event loop has the answer.",
            [*profile, "stage"],
            stage_edges,
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
        for rows in (self.tiers, self.seconds, self.stage_seconds):
            registry.register(rows)
        self._answered: dict[tuple[tuple[str, str], str, Reason], AnsweredSeries] = {}
        for reason in errors.reasons():
            self.refused.labels(reason)
        for kind in DECODE_FAILURES.values():
            self.decode_failures.labels(kind)
        for outcome in FRAME_OUTCOMES:
            self.frames.labels(outcome)

    def answered(self, profile: tuple[str, str], tier: str, reason: Reason) -> AnsweredSeries:
        kind = profile, tier, reason
        if kind not in self._answered:
            self._answered[kind] = AnsweredSeries(
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
