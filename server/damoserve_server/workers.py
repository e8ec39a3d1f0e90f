"""The threads that compute, and the event loop's side of the scheduler."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles.imaging import Size
from damoserve_profiles.postprocess import Detections
from damoserve_server.catalogue import ActiveProfile
from damoserve_server.engines import EngineError
from damoserve_server.errors import ShuttingDown
from damoserve_server.metrics import Metrics
from damoserve_server.scheduler import Batch, Policy, Scheduler, Ticket
from damoserve_server.tasks import settled

Select = Callable[[NDArray[np.float32], NDArray[np.float32]], Detections]
"""From the scores `[K, C]` and boxes `[K, 4]` of one image to its detections."""


@dataclass(frozen=True)
class Inference:
    """What the network found in one image; times in seconds, `started` on the monotonic clock."""

    detections: Detections
    batch_size: int
    started: float
    inference: float
    postprocess: float


@dataclass(frozen=True, eq=False)
class Job:
    """One image for the network."""

    row: NDArray[np.uint8]
    select: Select
    future: asyncio.Future[Inference]


Outcome = Inference | Exception


class Worker:
    """Owns one engine of every profile, and a buffer to gather batches in. Used by one thread at a time."""

    def __init__(self, number: int, profiles: Sequence[ActiveProfile], max_batch_size: int) -> None:
        self._number = number
        self._max_batch_size = max_batch_size
        self._buffers: dict[Size, NDArray[np.uint8]] = {}
        self.prepare(profiles)

    def prepare(self, profiles: Sequence[ActiveProfile]) -> None:
        for size in {profile.size for profile in profiles} - self._buffers.keys():
            self._buffers[size] = np.empty((self._max_batch_size, size.height, size.width, 3), np.uint8)

    def compute(self, profile: ActiveProfile, jobs: Sequence[Job]) -> list[Outcome]:
        """One outcome for each job: what fails for one image alone fails only that one."""
        started = time.monotonic()
        try:
            scores, boxes = profile.engines[self._number].run(self._gather(profile, jobs))
            if len(scores) != len(jobs) or len(boxes) != len(jobs):
                raise EngineError(f"{len(jobs)} images gave {len(scores)} scores and {len(boxes)} boxes")
        except Exception as error:
            return [error] * len(jobs)
        inference = time.monotonic() - started

        def outcome(index: int) -> Outcome:
            selecting = time.monotonic()
            try:
                detections = jobs[index].select(scores[index], boxes[index])
            except Exception as error:
                return error
            return Inference(detections, len(jobs), started, inference, time.monotonic() - selecting)

        return [outcome(index) for index in range(len(jobs))]

    def _gather(self, profile: ActiveProfile, jobs: Sequence[Job]) -> NDArray[np.uint8]:
        if len(jobs) == 1:
            return jobs[0].row[None]
        return np.stack([job.row for job in jobs], out=self._buffers[profile.size][: len(jobs)])


class Workers:
    """Starts batches when the scheduler says so. Lives on the event loop; only `Worker.compute` runs in threads."""

    def __init__(self, profiles: Sequence[ActiveProfile], policy: Policy, metrics: Metrics) -> None:
        self._scheduler: Scheduler[ActiveProfile, Job] = Scheduler(
            policy, lambda profile, batch_size: profile.latency.expected(batch_size), time.monotonic
        )
        self._workers = [Worker(number, profiles, policy.max_batch_size) for number in range(policy.workers)]
        self._idle = list(self._workers)
        self._threads = ThreadPoolExecutor(policy.workers, "worker")
        self._metrics = metrics
        self._alarm: asyncio.TimerHandle | None = None

    def prepare(self, profiles: Sequence[ActiveProfile]) -> None:
        """Makes room for profiles that are to be served."""
        for worker in self._workers:
            worker.prepare(profiles)

    def queued(self, profile: ActiveProfile) -> int:
        return self._scheduler.queued(profile)

    def expected_wait(self, deadline: float) -> float:
        """Seconds until a worker would be free for a request with this deadline."""
        return self._scheduler.expected_wait(deadline)

    async def infer(self, profile: ActiveProfile, row: NDArray[np.uint8], select: Select, deadline: float) -> Inference:
        """Runs the network on `row` `[height, width, 3]`, together with other requests where that helps.

        Raises QueueFull, DeadlineUnreachable, DeadlineExpired, ShuttingDown, or what the engine or `select` raised.
        However it ends, nothing reads `row` any more.
        """
        job = Job(row, select, asyncio.get_running_loop().create_future())
        ticket = self._scheduler.submit(profile, job, deadline)
        self._advance()
        return await settled(job.future, lambda: self._scheduler.cancel(ticket))

    def refuse(self) -> None:
        """Takes no more work and fails what waits; only the batches that run are left."""
        for ticket in self._scheduler.close():
            _settle(ticket, ShuttingDown())

    async def close(self) -> None:
        """Waits for the batches that run."""
        await asyncio.to_thread(self._threads.shutdown)
        if self._alarm is not None:
            self._alarm.cancel()

    def _advance(self) -> None:
        """Does all that is due and sets the alarm for what comes next."""
        for ticket, error in self._scheduler.drop():
            _settle(ticket, error)
        while (batch := self._scheduler.take()) is not None:
            self._start(batch)
        if self._alarm is not None:
            self._alarm.cancel()
        due = self._scheduler.next_event()
        self._alarm = None if due is None else asyncio.get_running_loop().call_at(due, self._advance)

    def _start(self, batch: Batch[ActiveProfile, Job]) -> None:
        worker = self._idle.pop()
        jobs = [ticket.payload for ticket in batch.tickets]
        work = asyncio.get_running_loop().run_in_executor(self._threads, worker.compute, batch.profile, jobs)
        work.add_done_callback(partial(self._finish, batch, worker))

    def _finish(self, batch: Batch[ActiveProfile, Job], worker: Worker, work: asyncio.Future[list[Outcome]]) -> None:
        self._scheduler.finish(batch)
        self._idle.append(worker)
        outcomes = work.result()
        for ticket, outcome in zip(batch.tickets, outcomes, strict=True):
            _settle(ticket, outcome)
        computed = next((outcome for outcome in outcomes if isinstance(outcome, Inference)), None)
        if computed is not None:
            batch.profile.latency.observe(computed.inference, computed.batch_size)
            self._metrics.batch_size.labels(*batch.profile.key).observe(computed.batch_size)
        self._advance()


def _settle(ticket: Ticket[ActiveProfile, Job], outcome: Outcome) -> None:
    if isinstance(outcome, Exception):
        ticket.payload.future.set_exception(outcome)
    else:
        ticket.payload.future.set_result(outcome)
