"""The way of a request: admitted, decoded, computed, answered. `Detector.detect` has all of it on one page."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles.imaging import Size, shown_size
from damoserve_profiles.manifest import Thresholds
from damoserve_profiles.postprocess import Detections, select
from damoserve_server.configuration.settings import Settings
from damoserve_server.detection.gate import Gate
from damoserve_server.detection.request import DetectionRequest, DetectionResult
from damoserve_server.detection.trace import record_answer, record_request
from damoserve_server.detection.worker import Inference, Job, JobTicket, settle
from damoserve_server.detection.worker_pool import WorkerPool
from damoserve_server.errors import DamoserveError, DeadlineExpired
from damoserve_server.fidelity.monitor import FidelityMonitor
from damoserve_server.inputs.buffers import Lease, Pool, affordable_slots
from damoserve_server.inputs.images import DECODE_FAILURES, ImageReader, bytes_to_decode
from damoserve_server.metrics.metrics import Metrics
from damoserve_server.models.catalogue import ActiveProfile, Catalogue
from damoserve_server.scheduling.latency import DecodeEstimate
from damoserve_server.scheduling.policy import Requirements
from damoserve_server.scheduling.selection import Reason, Tier, accurate_enough
from damoserve_server.telemetry.records import current

Floats = NDArray[np.float32]


class Detector:
    """Answers requests, and holds what all of them share."""

    def __init__(
        self, settings: Settings, catalogue: Catalogue, images: ImageReader, workers: WorkerPool, metrics: Metrics
    ) -> None:
        self.catalogue = catalogue
        self.fidelity = FidelityMonitor(settings.fidelity, metrics.fidelity)
        self._gate = Gate()
        self._settings = settings
        self._images = images
        self._workers = workers
        self._metrics = metrics
        self._decoding = DecodeEstimate()
        self._pools: dict[Size, Pool] = {}
        self._most_leased = 0
        self.prepare(catalogue.active())

    def prepare(self, profiles: Sequence[ActiveProfile]) -> None:
        """Creates buffers and metrics for requests of these profiles, and announces them to workers and monitor."""
        running = self._workers.capacity
        for profile in profiles:
            if profile.size not in self._pools:
                slots = affordable_slots(self._settings.max_queue + running, running + 1, profile.size)
                self._pools[profile.size] = Pool(slots, profile.size)
            self._metrics.add_profile(profile.manifest)
        self._metrics.device.pool_bytes.set(sum(pool.bytes for pool in self._pools.values()))
        self._workers.add(profiles)
        self.fidelity.add(profiles)

    def retire(self, profiles: Sequence[ActiveProfile]) -> None:
        """Forgets profiles that no new request gets; they finish what they still serve."""
        self._workers.remove(profiles)
        self.fidelity.remove(profiles)
        successors = {profile.key: profile.manifest for profile in self.catalogue.active()}
        for profile in profiles:
            self._metrics.models.drop_profile(profile.manifest, successors.get(profile.key))

    async def detect(self, request: DetectionRequest) -> DetectionResult:
        """Finds the objects in one image.

        Raises any DamoserveError; DeadlineExpired at the deadline, whatever the request is waiting for then.
        """
        with self._gate.inside(), self.fidelity.pause():
            try:
                return await self._detect(request)
            except tuple(DECODE_FAILURES) as error:
                self._metrics.requests.decode_failures.labels(DECODE_FAILURES[type(error)]).inc()
                raise

    def free_slots(self) -> int:
        """Counts the input buffers, of every size, that no request has."""
        return sum(pool.free for pool in tuple(self._pools.values()))

    def leased_slots(self) -> int:
        """Counts the input buffers, of every size, that requests have."""
        return sum(pool.leased for pool in tuple(self._pools.values()))

    def most_leased_slots(self) -> int:
        """Returns how many input buffers were leased at the same time, at most, since the start."""
        return self._most_leased

    async def drain(self, timeout: float) -> None:
        """Refuses new requests; returns when the accepted ones are answered.

        After `timeout` seconds those that still wait for the network are refused too.
        """
        await self._gate.close(timeout)
        self._workers.refuse()

    async def close(self) -> bool:
        """Ends the threads; no request may be inside. Returns False if an engine still computes."""
        ended, _ = await asyncio.gather(self._workers.close(), asyncio.to_thread(self.fidelity.close))
        await self._images.close()
        return ended

    async def _detect(self, request: DetectionRequest) -> DetectionResult:
        self._images.limits.check(request.image)
        tier = None if request.profile is not None else request.tier or self._settings.default_tier
        record = current.get()
        record_request(record, request, tier)
        size = bytes_to_decode(request.image)
        ticket = self._workers.admit(self._alternatives(request, tier), self._decoding.expected(size))
        try:
            lease = self._lease(ticket)
        except DamoserveError:
            self._workers.withdraw(ticket)
            raise
        job = Job(request, lease, self._select, asyncio.get_running_loop().create_future(), record)
        inference = await self._answer(ticket, job)
        self._decoding.observe(job.decoded - job.decode_started, size)
        result = DetectionResult(
            inference.detections,
            job.image_size,
            inference.profile,
            _reason(tier, inference),
            inference.batch_size,
            job.timings(inference),
        )
        record_answer(record, result, request.arrival)
        return result

    def _alternatives(self, request: DetectionRequest, tier: Tier | None) -> list[Requirements[ActiveProfile]]:
        """Returns what the request allows: one alternative for each network input, of which admission takes one."""
        profiles = self.catalogue.model(request.model).serving(request.profile)
        due, least = request.deadline, request.min_accuracy
        if tier is not None:
            promise = self._settings.tiers[tier]
            due = min(due, request.arrival + promise.objective_ms / 1000)
            least = max(least, promise.accuracy_floor)
        return [
            Requirements(allowed, request.deadline, due, request.arrival, request.priority)
            for allowed in _by_input(accurate_enough(profiles, least), due - time.monotonic())
        ]

    def _lease(self, ticket: JobTicket) -> Lease:
        """Leases a buffer of the size that the request was admitted with. Raises QueueFull."""
        lease = self._pools[ticket.requirements.allowed[0].size].lease()
        self._most_leased = max(self._most_leased, self.leased_slots())
        return lease

    async def _answer(self, ticket: JobTicket, job: Job) -> Inference:
        """Waits for the answer: the only wait of a request.

        When it ends early, by the deadline or since the caller has left, what a thread works on is that thread's to
        clean up.
        """
        decoding = self._images.submit(partial(self._decode, ticket, job))
        expiry = job.answer.get_loop().call_at(job.request.deadline, _expire, job.answer)
        try:
            return await job.answer
        finally:
            expiry.cancel()
            if not job.answer.done() or job.answer.cancelled() or job.answer.exception() is not None:
                self._workers.withdraw(ticket)
                if decoding.cancel():
                    job.lease.release()

    def _decode(self, ticket: JobTicket, job: Job) -> None:
        """Decodes the image and hands the job to the workers. Runs in a thread."""
        expected = ticket.requirements.allowed[0]
        job.decode_started = time.monotonic()
        try:
            job.image_size = self._images.read(job.request.image, job.lease.row, expected.manifest.input.resize)
            job.decoded = time.monotonic()
            self._workers.make_ready(ticket, job)
        except Exception as error:
            job.lease.release()
            job.answer.get_loop().call_soon_threadsafe(settle, job.answer, error)

    def _select(self, job: Job, profile: ActiveProfile, scores: Floats, boxes: Floats) -> Detections:
        """Selects the boxes of one image, and offers the answer to the fidelity monitor. Runs in a worker."""
        shown = shown_size(job.image_size, profile.size, profile.manifest.input.resize)
        self.fidelity.offer(profile, job.lease.row, (scores, boxes), shown)
        return select(scores, boxes, _thresholds(profile, job.request), shown, job.image_size)


def _by_input(profiles: Sequence[ActiveProfile], left: float) -> list[tuple[ActiveProfile, ...]]:
    """Groups profiles by their network input, since an image is resized only once.

    The inputs come first whose profiles could serve at once in the time that is left, the most accurate first.
    """
    if len({profile.input for profile in profiles}) == 1:
        return [tuple(profiles)]
    likeliest = sorted(profiles, key=lambda profile: profile.latency.expected() > left)
    inputs = dict.fromkeys(profile.input for profile in likeliest)
    return [tuple(profile for profile in profiles if profile.input == shared) for shared in inputs]


def _reason(tier: Tier | None, inference: Inference) -> Reason:
    if tier is None:
        return Reason.REQUESTED
    return Reason.MOST_ACCURATE_IN_TIME if inference.in_time else Reason.QUICKEST


def _expire(answer: asyncio.Future[Inference]) -> None:
    settle(answer, DeadlineExpired("the time ran out before the answer was there"))


def _thresholds(profile: ActiveProfile, request: DetectionRequest) -> Thresholds:
    named = {"score": request.score_threshold, "max_detections": request.max_detections}
    set_by_caller = {name: value for name, value in named.items() if value is not None}
    return profile.manifest.thresholds.model_copy(update=set_by_caller)
