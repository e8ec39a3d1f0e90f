"""A worker: one thread that computes batches, each of jobs, with engines of its own."""

import asyncio
import logging
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles.imaging import Size
from damoserve_profiles.postprocess import Detections
from damoserve_server.detection.request import DetectionRequest, Timings
from damoserve_server.engines.engine import EngineError, Outputs
from damoserve_server.inputs.buffers import Lease, aligned
from damoserve_server.models.catalogue import ActiveProfile
from damoserve_server.scheduling.scheduler import Batch, Ticket
from damoserve_server.telemetry.records import NO_RECORD, CallRecord

Select = Callable[["Job", ActiveProfile, NDArray[np.float32], NDArray[np.float32]], Detections]
"""Function from a job, its profile, the scores `[K, C]` and the boxes `[K, 4]` of its image to its detections."""
UNKNOWN = Size(0, 0)
"""Size of an image that is not decoded yet."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inference:
    """The objects that the network found in one image; times are on the monotonic clock."""

    detections: Detections
    profile: ActiveProfile
    """The profile that computed."""
    batch_size: int
    """Images that were computed together."""
    held_since: float
    """Time from which on the worker was held for a larger batch; infinite if it was not."""
    started: float
    """Time at which the batch was taken."""
    computed: float
    """Time at which the network was done."""
    selected: float
    """Time at which the boxes of this image were selected."""
    in_time: bool
    """True if the answer was expected before the request was due."""


@dataclass(eq=False)
class Job:
    """One admitted request, until its answer. Whoever takes its ticket out of the queue ends it.

    It does not refer to its ticket, which refers to it: a circle would keep the profile until a garbage collection.
    Times are on the monotonic clock.
    """

    request: DetectionRequest
    lease: Lease
    """Buffer with the network's input."""
    select: Select
    """Function that makes detections of the network's outputs."""
    answer: asyncio.Future[Inference]
    """Future that the caller waits for."""
    record: CallRecord = NO_RECORD
    decode_started: float = 0.0
    decoded: float = 0.0
    image_size: Size = UNKNOWN
    """Size of the image as it is displayed, once it is decoded."""

    def detections(self, profile: ActiveProfile, scores: NDArray[np.float32], boxes: NDArray[np.float32]) -> Detections:
        """Selects from the outputs for this image: scores `[K, C]`, boxes `[K, 4]` in pixels of the network's input."""
        return self.select(self, profile, scores, boxes)

    def end(self, outcome: "JobOutcome | None" = None) -> bool:
        """Gives the buffer back and settles the answer. Returns False if that came too late.

        `outcome` is None where nobody waits for it.
        """
        self.lease.release()
        return outcome is None or settle(self.answer, outcome)

    def timings(self, inference: Inference) -> Timings:
        """Returns the seconds of every stage up to now."""
        held = min(max(self.decoded, inference.held_since), inference.started)
        before = (self.request.arrival, self.decode_started, self.decoded, held)
        after = (inference.started, inference.computed, inference.selected, time.monotonic())
        return Timings(*(end - begin for begin, end in pairwise((*before, *after))))


JobTicket = Ticket[ActiveProfile, Job]
JobBatch = Batch[ActiveProfile, Job]
JobOutcome = Inference | Exception


def settle(future: asyncio.Future[Inference], outcome: JobOutcome) -> bool:
    """Sets the result or the exception. Returns False if the caller has left, or the deadline was first."""
    if future.done():
        return False
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
    return True


class BatchSource(Protocol):
    """The place that workers take their batches from."""

    def next_batch(self, worker: "Worker") -> JobBatch | None:
        """Waits for a batch, which the worker then owns; returns None when the worker is to end."""

    def finish(self, worker: "Worker", batch: JobBatch, outcomes: list[JobOutcome]) -> None:
        """Takes one outcome for each ticket of a batch that has ended."""

    def died(self, worker: "Worker") -> None:
        """Hears that a worker's thread ends by an error, so that another can take its place."""


@dataclass(eq=False)
class Worker:
    """A thread that owns the engines with its number in every profile, and a buffer to gather batches in."""

    number: int
    max_batch_size: int
    source: BatchSource
    batch: JobBatch | None = None
    """The batch that it computes now, or None."""
    abandoned: bool = False
    """True once nothing more is expected of it, as it hangs or has died."""
    broken: weakref.WeakSet[ActiveProfile] = field(default_factory=weakref.WeakSet)
    """Profiles whose engines raised or hang, maybe for good: their next batch gets new ones. Weak: a profile may go."""
    _buffers: dict[Size, NDArray[np.uint8]] = field(default_factory=dict)

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name=f"worker-{self.number}", daemon=True)
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """Waits for the thread to end, `timeout` seconds at most. Returns False if it has not."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._work():
                pass
        except BaseException:  # whatever ends the thread, its requests are to be answered
            log.exception("worker %d died", self.number)
            self.source.died(self)

    def _work(self) -> bool:
        """Computes one batch. Returns False when there is no more.

        Nothing refers to the batch afterwards: its profile may have been dropped, and is freed with the last reference.
        """
        batch = self.source.next_batch(self)
        if batch is None:
            return False
        self.source.finish(self, batch, self._compute(batch))
        return True

    def _compute(self, batch: JobBatch) -> list[JobOutcome]:
        """Returns one outcome for each job: an error in one image fails that image only."""
        count = len(batch.tickets)
        try:
            if batch.profile in self.broken:
                batch.profile.engines[self.number] = batch.profile.new_engine()
                self.broken.discard(batch.profile)
            started = time.monotonic()
            scores, boxes = self._infer(batch)
        except Exception as error:
            if not self.abandoned:
                self.broken.add(batch.profile)
            return [error] * count
        computed = time.monotonic()
        if not self.abandoned:  # how long it hung tells nothing of its successor
            batch.profile.latency.observe(computed - started, count)

        def outcome(index: int, ticket: JobTicket) -> JobOutcome:
            try:
                detections = _job(ticket).detections(batch.profile, scores[index], boxes[index])
            except Exception as error:
                return error
            return Inference(
                detections,
                batch.profile,
                count,
                batch.held_since,
                batch.started,
                computed,
                selected=time.monotonic(),
                in_time=batch.expected_end <= ticket.requirements.due,
            )

        return [outcome(index, ticket) for index, ticket in enumerate(batch.tickets)]

    def _infer(self, batch: JobBatch) -> Outputs:
        scores, boxes = batch.profile.engines[self.number].run(self._gather(batch))
        count = len(batch.tickets)
        if len(scores) != count or len(boxes) != count:
            raise EngineError(f"{count} images gave {len(scores)} scores and {len(boxes)} boxes")
        return scores, boxes

    def _gather(self, batch: JobBatch) -> NDArray[np.uint8]:
        rows = [_job(ticket).lease.row for ticket in batch.tickets]
        if len(rows) == 1:
            return rows[0][None]
        size = batch.profile.size
        if size not in self._buffers:
            self._buffers[size] = aligned((self.max_batch_size, size.height, size.width, 3))
        return np.stack(rows, out=self._buffers[size][: len(rows)])


def _job(ticket: JobTicket) -> Job:
    assert ticket.payload is not None  # the scheduler hands out only what is ready
    return ticket.payload
