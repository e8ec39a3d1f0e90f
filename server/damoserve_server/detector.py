"""The use case: an image and wishes in, detections out. Knows nothing of protobuf or gRPC."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from damoserve_profiles.imaging import Size, shown_size
from damoserve_profiles.manifest import Thresholds
from damoserve_profiles.postprocess import Detections, select
from damoserve_server.catalogue import ActiveProfile, Catalogue
from damoserve_server.errors import DeadlineExpired
from damoserve_server.gate import Gate
from damoserve_server.images import ImageReader
from damoserve_server.latency import DecodeEstimate
from damoserve_server.memory import Pool
from damoserve_server.metrics import NO_TIER, STAGES, Metrics
from damoserve_server.router import Candidate, Choice, Reason, Tier, Wish, choose
from damoserve_server.settings import Settings
from damoserve_server.workers import Workers


@dataclass(frozen=True)
class DetectionRequest:
    """What is asked for. Times are on the monotonic clock; None means the model's default."""

    image: bytes
    arrival: float
    deadline: float
    model: str = ""
    profile: str | None = None
    tier: Tier | None = None
    min_accuracy: float = 0.0
    score_threshold: float | None = None
    max_detections: int | None = None


@dataclass(frozen=True)
class Timings:
    """Seconds in each stage; they follow one another."""

    decode: float
    queue: float
    inference: float
    postprocess: float
    total: float


@dataclass(frozen=True)
class DetectionResult:
    """What was found; boxes are in pixels of an image of `image_size`."""

    detections: Detections
    image_size: Size
    profile: ActiveProfile
    reason: Reason
    batch_size: int
    timings: Timings


class Detector:
    """Holds what all requests share."""

    def __init__(
        self, settings: Settings, catalogue: Catalogue, images: ImageReader, workers: Workers, metrics: Metrics
    ) -> None:
        self.catalogue = catalogue
        self._gate = Gate()
        self._settings = settings
        self._images = images
        self._workers = workers
        self._metrics = metrics
        self._decoding = DecodeEstimate()
        self._pools: dict[Size, Pool] = {}
        self.prepare(catalogue.active())

    def prepare(self, profiles: Sequence[ActiveProfile]) -> None:
        """Creates what requests of these profiles need."""
        slots = self._settings.max_queue + self._settings.workers * self._settings.max_batch_size
        for profile in profiles:
            if profile.size not in self._pools:
                self._pools[profile.size] = Pool(slots, profile.size)
            self._metrics.add_profile(profile.manifest, partial(self._workers.queued, profile))
        self._workers.prepare(profiles)

    def retire(self, profiles: Sequence[ActiveProfile]) -> None:
        """Forgets profiles that no new request gets."""
        successors = {profile.key: profile.manifest for profile in self.catalogue.active()}
        for profile in profiles:
            self._metrics.drop_profile(profile.manifest, successors.get(profile.key))

    async def detect(self, request: DetectionRequest) -> DetectionResult:
        """Raises any DamoserveError. Once the network has started, the answer is given even if it comes late."""
        with self._gate.passage():
            self._images.limits.check(request.image)
            tier = None if request.profile is not None else request.tier or self._settings.default_tier
            choice = self._route(request, tier)
            result = await self._serve(request, choice)
        self._record(result, tier)
        return result

    def free_slots(self) -> int:
        return sum(pool.free for pool in self._pools.values())

    def leased_slots(self) -> int:
        return sum(pool.leased for pool in self._pools.values())

    async def drain(self, patience: float) -> None:
        """Refuses new requests; returns when the accepted ones are answered.

        After `patience` seconds those that still wait for the network are refused too.
        """
        await self._gate.close(patience)
        self._workers.refuse()

    async def close(self) -> None:
        """Ends the threads. No request may be inside."""
        await self._workers.close()
        await self._images.close()

    def _route(self, request: DetectionRequest, tier: Tier | None) -> Choice[ActiveProfile]:
        profiles = self.catalogue.model(request.model).serving(request.profile)
        now = time.monotonic()
        if request.deadline <= now:
            raise DeadlineExpired("the time ran out before the request could be looked at")
        before = self._decoding.expected(len(request.image)) + self._workers.expected_wait(request.deadline)
        candidates = [
            Candidate(profile, profile.manifest.accuracy.ap, before + profile.latency.expected())
            for profile in profiles
        ]
        objective, min_accuracy = None, request.min_accuracy
        if tier is not None:
            promised = self._settings.tiers[tier]
            objective = request.arrival + promised.objective_ms / 1000 - now
            min_accuracy = max(min_accuracy, promised.accuracy_floor)
        choice = choose(candidates, Wish(request.deadline - now, objective, min_accuracy))
        self._metrics.routed.labels(*choice.profile.key, tier or NO_TIER, choice.reason).inc()
        return choice

    async def _serve(self, request: DetectionRequest, choice: Choice[ActiveProfile]) -> DetectionResult:
        profile = choice.profile
        with self._pools[profile.size].lease() as row:
            started = time.monotonic()
            mode = profile.manifest.input.resize
            image_size = await self._images.read(request.image, row, mode, request.deadline)
            decoded = time.monotonic()
            self._decoding.observe(decoded - started, len(request.image))
            find = partial(
                select,
                thresholds=_thresholds(profile, request),
                shown=shown_size(image_size, profile.size, mode),
                image_size=image_size,
            )
            found = await self._workers.infer(profile, row, find, request.deadline)
        timings = Timings(
            decode=decoded - started,
            queue=found.started - decoded,
            inference=found.inference,
            postprocess=found.postprocess,
            total=time.monotonic() - request.arrival,
        )
        return DetectionResult(found.detections, image_size, profile, choice.reason, found.batch_size, timings)

    def _record(self, result: DetectionResult, tier: Tier | None) -> None:
        key = result.profile.key
        for stage in STAGES:
            self._metrics.stage_seconds.labels(*key, stage).observe(getattr(result.timings, stage))
        self._metrics.request_seconds.labels(*key, tier or NO_TIER).observe(result.timings.total)


def _thresholds(profile: ActiveProfile, request: DetectionRequest) -> Thresholds:
    wanted = {"score": request.score_threshold, "max_detections": request.max_detections}
    set_by_caller = {name: value for name, value in wanted.items() if value is not None}
    return profile.manifest.thresholds.model_copy(update=set_by_caller)
