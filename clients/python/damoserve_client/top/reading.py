"""What a server did between two scrapes, as numbers; None is what it does not tell, or what did not happen."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from damoserve_client.top.quantiles import quantile
from damoserve_client.top.scrape import START, Scrape, Series

STAGES = ("decode_wait", "decode", "queue", "batch_wait", "inference", "postprocess", "respond")
"""The stages in the order in which a request passes them. A server may tell fewer."""
OUTCOMES = ("in_time", "late", "refused", "expired", "cancelled", "invalid", "failed")
TIERS = ("realtime", "balanced", "accurate", "none")
"""`none`: requests that name their profile."""


@dataclass(frozen=True)
class Latency:
    """Latency percentiles of answered requests, in seconds."""

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True)
class TierReading:
    """Requests of one tier."""

    tier: str
    rate: float
    """Requests that ended, a second; of an older server, those that were answered."""
    in_time: float | None
    """The share of these that were answered within the objective, 0 to 1."""
    latency: Latency
    objective: float | None
    """Seconds."""
    accuracy: float | None
    """Mean average precision of the profiles that answered, 0 to 1."""


@dataclass(frozen=True)
class ProfileReading:
    """One profile of one model."""

    model: str
    profile: str
    state: str
    rate: float
    """Answers a second."""
    latency: Latency
    batch: float | None
    """Mean size of its batches."""
    accuracy: float | None
    """Average precision by the manifest, 0 to 1."""
    agreement: float | None
    """F1 of its boxes against the reference profile's, 0 to 1, since the server started."""
    expected_agreement: float | None
    """The same when the profile was built."""


@dataclass(frozen=True)
class Process:
    """The server's process."""

    version: str | None
    uptime: float | None
    """Seconds."""
    cpu: float | None
    """Cores in use."""
    memory: float | None
    """Resident bytes."""


@dataclass(frozen=True)
class Device:
    """The workers, and the requests that wait for them."""

    queued: float | None
    decoding: float | None
    workers: float | None
    busy: float | None
    """Workers that computed at the moment of the scrape."""
    utilisation: float | None
    """The share of the time that the workers were in batches, 0 to 1."""
    batch: float | None
    """Mean size of a batch."""
    slots: float | None
    """Buffers in all."""
    leased: float | None
    high_water: float | None
    """Most buffers leased at a time."""
    restarts: float | None
    """Workers replaced since the start."""


@dataclass(frozen=True)
class Reading:
    """Everything that is shown."""

    seconds: float
    """Seconds between the two scrapes."""
    process: Process
    versions: dict[str, str]
    """Versions of each model; two while they change."""
    rate: float
    """Requests that ended, a second; of an older server, those that were answered."""
    outcomes: dict[str, float]
    """Requests a second by their end."""
    refusals: dict[str, float]
    """Calls and frames that failed, a second, by reason; only reasons that occurred."""
    in_flight: float | None
    latency: Latency
    accuracy: float | None
    """Mean average precision of the profiles that answered, 0 to 1."""
    tiers: list[TierReading]
    profiles: list[ProfileReading]
    stages: dict[str, float]
    """Mean seconds of a request in each stage."""
    device: Device


@dataclass(frozen=True)
class Span:
    """The values at the end of an interval, and what was added since its beginning."""

    seconds: float
    now: Series
    added: Series

    def rate(self, name: str, **labels: str) -> float | None:
        """A second."""
        return _divide(self.added.total(name, **labels), self.seconds)

    def rates(self, name: str, label: str) -> dict[str, float]:
        """A second, by the values of the label."""
        return {value: added / self.seconds for (value,), added in self.added.by(name, label).items()}

    def ended(self, **labels: str) -> float:
        """Requests a second."""
        rate = self.rate("damoserve_requests_total", **labels)
        return (self.rate("damoserve_request_seconds_count", **labels) or 0.0) if rate is None else rate

    def mean(self, name: str, **labels: str) -> float | None:
        """Returns the mean of what a histogram or a summary was given."""
        return _divide(self.added.total(f"{name}_sum", **labels), self.added.total(f"{name}_count", **labels))

    def latency(self, **labels: str) -> Latency:
        buckets = self.added.buckets("damoserve_request_seconds", **labels)
        return Latency(*(quantile(share, buckets) for share in (0.5, 0.95, 0.99)))


def read(before: Scrape, after: Scrape) -> Reading:
    """`after` must be later than `before`."""
    span = Span(after.moment - before.moment, after.series, after.series.since(before.series))
    outcomes = span.rates("damoserve_requests_total", "outcome")
    refusals = span.rates("damoserve_refused_total", "reason")
    tiers = _ordered(_labels(span.now, "damoserve_request_seconds_count", "tier"), TIERS)
    return Reading(
        seconds=span.seconds,
        process=_process(span),
        versions=_versions(span.now),
        rate=span.ended(),
        outcomes={outcome: outcomes[outcome] for outcome in _ordered(outcomes, OUTCOMES)},
        refusals={reason: rate for reason, rate in sorted(refusals.items()) if rate},
        in_flight=span.now.total("damoserve_requests_in_flight"),
        latency=span.latency(),
        accuracy=span.mean("damoserve_served_accuracy"),
        tiers=[_tier(tier, span) for tier in tiers],
        profiles=_profiles(span),
        stages=_stages(span),
        device=_device(span),
    )


def _versions(now: Series) -> dict[str, str]:
    models = _labels(now, "damoserve_profile_info", "model")
    return {model: ", ".join(_labels(now, "damoserve_profile_info", "version", model=model)) for model in models}


def _process(span: Span) -> Process:
    started = span.now.total(START)
    (version,) = next(iter(span.now.by("damoserve_build_info", "version")), (None,))
    return Process(
        version=version,
        uptime=None if started is None else max(0.0, time.time() - started),
        cpu=span.rate("process_cpu_seconds_total"),
        memory=span.now.total("process_resident_memory_bytes"),
    )


def _tier(tier: str, span: Span) -> TierReading:
    rate = span.ended(tier=tier)
    return TierReading(
        tier=tier,
        rate=rate,
        in_time=_divide(span.rate("damoserve_requests_total", tier=tier, outcome="in_time"), rate),
        latency=span.latency(tier=tier),
        objective=span.now.total("damoserve_tier_objective_seconds", tier=tier),
        accuracy=span.mean("damoserve_served_accuracy", tier=tier),
    )


def _profiles(span: Span) -> list[ProfileReading]:
    """Those that serve or should, by model, then the most accurate first."""
    states = span.now.by("damoserve_profile_state", "model", "profile", "state")
    readings = [_profile(model, profile, state, span) for (model, profile, state), is_so in states.items() if is_so]
    return sorted(readings, key=lambda each: (each.model, -(each.accuracy or 0.0), each.profile))


def _profile(model: str, profile: str, state: str, span: Span) -> ProfileReading:
    which = {"model": model, "profile": profile}
    return ProfileReading(
        model=model,
        profile=profile,
        state=state,
        rate=span.rate("damoserve_request_seconds_count", **which) or 0.0,
        latency=span.latency(**which),
        batch=span.mean("damoserve_batch_size", **which),
        accuracy=span.now.total("damoserve_profile_accuracy", **which),
        agreement=_agreement(span.now, **which),
        expected_agreement=span.now.total("damoserve_fidelity_expected_agreement", **which),
    )


def _agreement(now: Series, **which: str) -> float | None:
    boxes = now.by("damoserve_fidelity_boxes_total", "result", **which)
    twice_matched = 2 * boxes.get(("matched",), 0.0)
    return _divide(twice_matched, twice_matched + boxes.get(("missing",), 0.0) + boxes.get(("extra",), 0.0))


def _stages(span: Span) -> dict[str, float]:
    stages = _ordered(_labels(span.now, "damoserve_stage_seconds_count", "stage"), STAGES)
    means = {stage: span.mean("damoserve_stage_seconds", stage=stage) for stage in stages}
    return {stage: seconds for stage, seconds in means.items() if seconds is not None}


def _device(span: Span) -> Device:
    now = span.now
    workers = now.total("damoserve_workers")
    utilisation = _divide(span.rate("damoserve_worker_busy_seconds_total"), workers)
    return Device(
        queued=now.total("damoserve_queued_requests", state="ready"),
        decoding=now.total("damoserve_queued_requests", state="decoding"),
        workers=workers,
        busy=now.total("damoserve_workers_busy"),
        utilisation=None if utilisation is None else min(1.0, utilisation),  # a batch counts when it ends
        batch=span.mean("damoserve_batch_size"),
        slots=now.total("damoserve_pool_slots"),
        leased=now.total("damoserve_pool_slots", state="leased"),
        high_water=now.total("damoserve_pool_slots_high_water"),
        restarts=now.total("damoserve_worker_restarts_total"),
    )


def _labels(now: Series, name: str, label: str, **labels: str) -> list[str]:
    """The values that the label has, in alphabetical order."""
    return sorted(value for (value,) in now.by(name, label, **labels))


def _ordered(names: Iterable[str], order: tuple[str, ...]) -> list[str]:
    """Those of a newer server that are not in the order come last."""
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def _divide(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None
