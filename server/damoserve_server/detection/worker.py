"""One thread that computes batches."""

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
from damoserve_server.telemetry.records import UNWATCHED, CallRecord

Select = Callable[["Job", ActiveProfile, NDArray[np.float32], NDArray[np.float32]], Detections]
"""From the profile, the scores `[K, C]` and the boxes `[K, 4]` of one image to its detections."""
UNKNOWN = Size(0, 0)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inference:
    """What the network found in one image; times are on the monotonic clock."""

    detections: Detections
    profile: ActiveProfile
    batch_size: int
    held_since: float
    """Since when the worker waited to fill the batch; infinite if it did not."""
    started: float
    computed: float
    selected: float
    in_time: bool
    """Whether the answer was expected before the request was due."""


@dataclass(eq=False)
class Job:
    """One admitted request, until its answer. Whoever takes its ticket out of the queue ends it.

    It does not refer to its ticket, which refers to it: a circle would keep the profile until a garbage collection.
    Times are on the monotonic clock.
    """

    request: DetectionRequest
    lease: Lease
    select: Select
    answer: asyncio.Future[Inference]
    record: CallRecord = UNWATCHED
    decode_started: float = 0.0
    decoded: float = 0.0
    image_size: Size = UNKNOWN

    def detections(self, profile: ActiveProfile, scores: NDArray[np.float32], boxes: NDArray[np.float32]) -> Detections:
        """What the network's outputs for this image say: scores `[K, C]`, boxes `[K, 4]` in pixels of its input."""
        return self.select(self, profile, scores, boxes)

    def end(self, outcome: "Outcome | None" = None) -> bool:
        """Gives the row back; None when nobody waits for the outcome. False: it came too late."""
        self.lease.release()
        return outcome is None or settle(self.answer, outcome)

    def timings(self, found: Inference) -> Timings:
        """Where the time went, up to now."""
        held = min(max(self.decoded, found.held_since), found.started)
        before = (self.request.arrival, self.decode_started, self.decoded, held)
        after = (found.started, found.computed, found.selected, time.monotonic())
        return Timings(*(end - begin for begin, end in pairwise((*before, *after))))


JobTicket = Ticket[ActiveProfile, Job]
JobBatch = Batch[ActiveProfile, Job]
Outcome = Inference | Exception


def settle(future: asyncio.Future[Inference], outcome: Outcome) -> bool:
    """False: the caller has left, or the deadline was first."""
    if future.done():
        return False
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
    return True


class BatchSource(Protocol):
    """Gives workers their work."""

    def next_batch(self, worker: "Worker") -> JobBatch | None:
        """Waits for it; None when the worker is to end."""

    def finish(self, worker: "Worker", batch: JobBatch, outcomes: list[Outcome]) -> None:
        """Takes one outcome for each ticket."""

    def died(self, worker: "Worker") -> None:
        """The worker ends without having been told to."""


@dataclass(eq=False)
class Worker:
    """Owns the engines with its number in every profile, and a buffer to gather batches in."""

    number: int
    max_batch_size: int
    source: BatchSource
    batch: JobBatch | None = None
    """What it computes now."""
    given_up: bool = False
    """Once set, nothing more is expected of it."""
    broken: weakref.WeakSet[ActiveProfile] = field(default_factory=weakref.WeakSet)
    """Their engines raised or hang, maybe for good: the next batch gets new ones. A profile may go meanwhile."""
    _buffers: dict[Size, NDArray[np.uint8]] = field(default_factory=dict)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"worker-{self.number}", daemon=True)
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """False if its thread has not ended by then, in seconds."""
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
        """One batch, to which nothing refers afterwards: its profile may have been dropped. False: there is no more."""
        batch = self.source.next_batch(self)
        if batch is None:
            return False
        self.source.finish(self, batch, self._compute(batch))
        return True

    def _compute(self, batch: JobBatch) -> list[Outcome]:
        """One outcome for each job: what fails for one image alone fails only that one."""
        count = len(batch.tickets)
        try:
            if batch.profile in self.broken:
                batch.profile.engines[self.number] = batch.profile.new_engine()
                self.broken.discard(batch.profile)
            started = time.monotonic()
            scores, boxes = self._infer(batch)
        except Exception as error:
            if not self.given_up:
                self.broken.add(batch.profile)
            return [error] * count
        computed = time.monotonic()
        if not self.given_up:  # how long it hung tells nothing of its successor
            batch.profile.latency.observe(computed - started, count)

        def outcome(index: int, ticket: JobTicket) -> Outcome:
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
