"""The use case: an image and wishes in, detections out. Knows nothing of protobuf or gRPC."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles.imaging import Size, shown_size
from damoserve_profiles.manifest import Thresholds
from damoserve_profiles.postprocess import Detections, select
from damoserve_server.catalogue import ActiveProfile, Catalogue
from damoserve_server.errors import DeadlineExpired
from damoserve_server.gate import Gate
from damoserve_server.images import Image, ImageReader, bytes_to_decode
from damoserve_server.latency import DecodeEstimate
from damoserve_server.memory import Pool, affordable_slots
from damoserve_server.metrics import NO_TIER, STAGES, Metrics
from damoserve_server.policies import LOWEST_PRIORITY, Wish
from damoserve_server.router import Reason, Tier, accurate_enough
from damoserve_server.settings import Settings
from damoserve_server.worker import Inference, JobTicket
from damoserve_server.workers import Workers

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class DetectionRequest:
    """What is asked for. Times are on the monotonic clock; None means the model's default."""

    image: Image
    arrival: float
    deadline: float
    model: str = ""
    profile: str | None = None
    tier: Tier | None = None
    min_accuracy: float = 0.0
    score_threshold: float | None = None
    max_detections: int | None = None
    priority: int = LOWEST_PRIORITY
    """1 is the most urgent."""


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
        """Makes room for the requests of these profiles, before they serve."""
        running = self._workers.capacity
        for profile in profiles:
            if profile.size not in self._pools:
                slots = affordable_slots(self._settings.max_queue + running, running + 1, profile.size)
                self._pools[profile.size] = Pool(slots, profile.size)
            self._metrics.add_profile(profile.manifest)
        self._workers.add(profiles)

    def retire(self, profiles: Sequence[ActiveProfile]) -> None:
        """Forgets profiles that no new request gets; what they still serve they finish."""
        self._workers.remove(profiles)
        successors = {profile.key: profile.manifest for profile in self.catalogue.active()}
        for profile in profiles:
            self._metrics.drop_profile(profile.manifest, successors.get(profile.key))

    async def detect(self, request: DetectionRequest) -> DetectionResult:
        """Raises any DamoserveError; DeadlineExpired at the deadline, whatever the request is waiting for then."""
        answer = asyncio.get_running_loop().create_task(self._answer(request))
        answer.add_done_callback(_hear)
        try:
            await asyncio.wait((answer,), timeout=request.deadline - time.monotonic())
        finally:
            # What has not begun is withdrawn; what a thread works on ends by itself, and then its memory is free.
            answer.cancel()
        if not answer.done():
            raise DeadlineExpired("the time ran out before the answer was there")
        return answer.result()

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

    async def _answer(self, request: DetectionRequest) -> DetectionResult:
        with self._gate.passage():
            self._images.limits.check(request.image)
            tier = None if request.profile is not None else request.tier or self._settings.default_tier
            wish = self._wish(request, tier)
            ticket = self._workers.admit(wish, self._decoding.expected(bytes_to_decode(request.image)))
            try:
                result = await self._serve(request, tier, ticket)
            finally:
                self._workers.withdraw(ticket)
        self._record(result, tier)
        return result

    def _wish(self, request: DetectionRequest, tier: Tier | None) -> Wish[ActiveProfile]:
        profiles = self.catalogue.model(request.model).serving(request.profile)
        due, least = request.deadline, request.min_accuracy
        if tier is not None:
            promised = self._settings.tiers[tier]
            due = min(due, request.arrival + promised.objective_ms / 1000)
            least = max(least, promised.accuracy_floor)
        wish = Wish(accurate_enough(profiles, least), request.deadline, due, request.arrival, request.priority)
        return replace(wish, allowed=self._of_one_input(wish))

    def _of_one_input(self, wish: Wish[ActiveProfile]) -> tuple[ActiveProfile, ...]:
        """Those that take the same network input as the one that would serve at once: an image is resized only once."""
        left = wish.due - time.monotonic()
        in_time = (profile for profile in wish.allowed if profile.latency.expected() <= left)
        best = next(in_time, min(wish.allowed, key=lambda profile: profile.latency.expected()))
        return tuple(profile for profile in wish.allowed if profile.manifest.input == best.manifest.input)

    async def _serve(self, request: DetectionRequest, tier: Tier | None, ticket: JobTicket) -> DetectionResult:
        expected = ticket.wish.allowed[0]
        mode = expected.manifest.input.resize
        with self._pools[expected.size].lease() as row:
            started = time.monotonic()
            image_size = await self._images.read(request.image, row, mode, request.deadline)
            decoded = time.monotonic()
            self._decoding.observe(decoded - started, bytes_to_decode(request.image))
            shown = shown_size(image_size, expected.size, mode)

            def find(profile: ActiveProfile, scores: Floats, boxes: Floats) -> Detections:
                return select(scores, boxes, _thresholds(profile, request), shown, image_size)

            found = await self._workers.infer(ticket, row, find)
        timings = Timings(
            decode=decoded - started,
            queue=found.started - decoded,
            inference=found.inference,
            postprocess=found.postprocess,
            total=time.monotonic() - request.arrival,
        )
        return DetectionResult(
            found.detections, image_size, found.profile, _reason(tier, found), found.batch_size, timings
        )

    def _record(self, result: DetectionResult, tier: Tier | None) -> None:
        key = result.profile.key
        self._metrics.routed.labels(*key, tier or NO_TIER, result.reason).inc()
        for stage in STAGES:
            self._metrics.stage_seconds.labels(*key, stage).observe(getattr(result.timings, stage))
        self._metrics.request_seconds.labels(*key, tier or NO_TIER).observe(result.timings.total)


def _reason(tier: Tier | None, found: Inference) -> Reason:
    if tier is None:
        return Reason.REQUESTED
    return Reason.MOST_ACCURATE_IN_TIME if found.in_time else Reason.QUICKEST


def _hear(answer: asyncio.Task[DetectionResult]) -> None:
    """Nobody else looks at what an abandoned request ends with, and asyncio would complain."""
    if not answer.cancelled():
        answer.exception()


def _thresholds(profile: ActiveProfile, request: DetectionRequest) -> Thresholds:
    wanted = {"score": request.score_threshold, "max_detections": request.max_detections}
    set_by_caller = {name: value for name, value in wanted.items() if value is not None}
    return profile.manifest.thresholds.model_copy(update=set_by_caller)
