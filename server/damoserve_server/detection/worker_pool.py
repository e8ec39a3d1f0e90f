"""All workers of a device: the lock around their queue, the way of answers to the event loop, and the watchdog."""

import asyncio
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from damoserve_server.detection.trace import record_batch
from damoserve_server.detection.worker import Inference, Job, JobBatch, JobOutcome, JobTicket, Worker
from damoserve_server.errors import ShuttingDown, WorkersLost
from damoserve_server.metrics.metrics import Metrics
from damoserve_server.models.catalogue import ActiveProfile
from damoserve_server.scheduling.policy import Policy, Requirements
from damoserve_server.scheduling.scheduler import Scheduler

CHECKS_PER_TIMEOUT = 4
"""Number of times that the watchdog looks within the time that a batch may run."""
JOIN_SECONDS = 1.0
"""Seconds that a stopping server waits for a thread that computes nothing and yet does not end."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerLimits:
    """Bounds on the workers and their queue."""

    workers: int
    """Number of workers."""
    max_batch_size: int
    """Most images in a batch."""
    max_queue: int
    """Most requests that wait."""
    hang_timeout: float
    """Seconds that a batch may run before its worker is abandoned."""


class WorkerPool:
    """All workers, and the one queue that they take batches from.

    Public methods are for the event loop, except `make_ready`, which the decoding threads call, and those of the
    `BatchSource`, which the workers call. A worker that hangs or dies is noticed, what it computed is answered with
    WorkersLost, and another takes its place, with engines of its own.
    """

    def __init__(
        self, policy: Policy, limits: WorkerLimits, metrics: Metrics, alive: Callable[[int], None] = lambda count: None
    ) -> None:
        """Starts the workers. `alive` is called with their number whenever it changes."""
        self._limits = limits
        self._device = metrics.device
        self._unused_answers = metrics.requests.unused_answers
        self._alive = alive
        self._loop = asyncio.get_running_loop()
        self._profiles: set[ActiveProfile] = set()
        self._removed: weakref.WeakSet[ActiveProfile] = weakref.WeakSet()
        self._scheduler: Scheduler[ActiveProfile, Job] = Scheduler(
            policy,
            lambda profile: profile.latency.cost(profile.accuracy),
            max_queue=limits.max_queue,
            clock=time.monotonic,
        )
        self._changed = threading.Condition()
        """Guards the scheduler, and which batch each worker has."""
        self._closed = False
        self._workers: set[Worker] = set()
        self._replacing: set[asyncio.Task[None]] = set()
        for number in range(limits.workers):
            self._start_worker(number)
        self._watchdog = self._loop.create_task(self._watch())

    def add(self, profiles: Iterable[ActiveProfile]) -> None:
        """Adds profiles, of which a worker that takes another's place needs an engine."""
        self._profiles |= set(profiles)

    def remove(self, profiles: Iterable[ActiveProfile]) -> None:
        """Removes profiles: nothing here refers to them once the requests that they serve are answered."""
        self._profiles -= set(profiles)
        self._removed |= weakref.WeakSet(profiles)

    @property
    def capacity(self) -> int:
        """Most images that are computed at the same time."""
        return self._limits.workers * self._limits.max_batch_size

    @property
    def busy(self) -> int:
        """Number of workers that compute now."""
        return self._scheduler.running

    def queued(self, *, ready: bool) -> int:
        """Counts the requests that wait and are decoded, or that wait and are not."""
        with self._changed:
            return self._scheduler.queued(ready=ready)

    def admit(self, alternatives: Sequence[Requirements[ActiveProfile]], decoding: float) -> JobTicket:
        """Admits a request whose image will be decoded in `decoding` seconds; it must be made ready or withdrawn.

        `alternatives` come in the order of preference; the ticket has the one that it is admitted with.
        Raises QueueFull, DeadlineUnreachable, DeadlineExpired, WorkersLost or ShuttingDown.
        """
        with self._changed:
            return self._scheduler.admit(self._scheduler.choose(alternatives, decoding), decoding)

    def make_ready(self, ticket: JobTicket, job: Job) -> None:
        """Hands a job whose image is decoded to the workers, which end it unless this raises.

        Raises DeadlineUnreachable, DeadlineExpired or ShuttingDown.
        """
        with self._changed:
            self._scheduler.make_ready(ticket, job)
            self._changed.notify()

    def withdraw(self, ticket: JobTicket) -> None:
        """Takes out a request that nobody waits for any more. A worker that has begun it finishes it."""
        with self._changed:
            waited = self._scheduler.withdraw(ticket)
        if waited and ticket.payload is not None:
            ticket.payload.end()

    def refuse(self) -> None:
        """Admits nothing more and fails the requests that wait; only the batches that run are left."""
        with self._changed:
            waiting = self._scheduler.close()
        self._settle([(ticket, ShuttingDown()) for ticket in waiting])

    async def close(self) -> bool:
        """Waits for the batches that run, and ends the workers. Returns False if one hangs."""
        self.refuse()
        self._watchdog.cancel()
        for replacing in self._replacing:
            replacing.cancel()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        joins = [
            asyncio.to_thread(worker.join, JOIN_SECONDS if worker.batch is None else self._limits.hang_timeout)
            for worker in self._workers
        ]
        return all(await asyncio.gather(*joins))

    def next_batch(self, worker: Worker) -> JobBatch | None:
        with self._changed:
            while not (self._closed or worker.abandoned):
                if dropped := self._scheduler.drop():
                    self._on_event_loop(partial(self._settle, dropped))
                worker.batch = self._scheduler.take()
                if worker.batch is not None:
                    return worker.batch
                resume = self._scheduler.next_take()
                self._changed.wait(None if resume is None else max(0.0, resume - time.monotonic()))
        return None

    def finish(self, worker: Worker, batch: JobBatch, outcomes: list[JobOutcome]) -> None:
        with self._changed:
            if worker.abandoned:
                return
            worker.batch = None
            self._scheduler.finish(batch)
        self._device.worker_busy_seconds.inc(time.monotonic() - batch.started)
        self._on_event_loop(partial(self._answer, batch, outcomes))

    def died(self, worker: Worker) -> None:
        self._on_event_loop(partial(self._replace, worker))

    def _answer(self, batch: JobBatch, outcomes: list[JobOutcome]) -> None:
        key = batch.profile.key
        self._device.batch_size.labels(*key).observe(len(outcomes))
        self._device.batches.labels(*key, batch.closing).inc()
        record_batch(batch, outcomes)
        unused = self._settle(zip(batch.tickets, outcomes, strict=True))
        if unused:
            self._unused_answers.labels(*key).inc(unused)

    def _on_event_loop(self, work: Callable[[], object]) -> None:
        """Runs `work` on the event loop; does nothing for a worker that comes back when the server has gone."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(work)

    def _settle(self, outcomes: Iterable[tuple[JobTicket, JobOutcome]]) -> int:
        """Ends the jobs of these tickets. Returns how many answers nobody waits for any more."""
        unused = 0
        for ticket, outcome in outcomes:
            if ticket.payload is not None:  # else its image is still being decoded, which will find out
                unused += not ticket.payload.end(outcome) and isinstance(outcome, Inference)
        return unused

    def _start_worker(self, number: int) -> None:
        # Nobody makes an engine of a removed profile before it is needed, and its old one may hang.
        worker = Worker(number, self._limits.max_batch_size, self, broken=weakref.WeakSet(self._removed))
        self._workers.add(worker)
        with self._changed:
            self._scheduler.workers = len(self._workers)
        worker.start()
        self._alive(len(self._workers))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._limits.hang_timeout / CHECKS_PER_TIMEOUT)
            for worker, batch in self._abandon_hanging():
                log.error("worker %d hangs in %s; it is replaced", worker.number, "/".join(batch.profile.key))
                self._replace(worker)

    def _abandon_hanging(self) -> list[tuple[Worker, JobBatch]]:
        """Returns the workers that hang, and their batches: from this moment on their outcomes count no more."""
        oldest_start = time.monotonic() - self._limits.hang_timeout
        with self._changed:
            busy = [(worker, worker.batch) for worker in self._workers if worker.batch is not None]
            hanging = [(worker, batch) for worker, batch in busy if batch.started < oldest_start]
            for worker, _ in hanging:
                worker.abandoned = True
        return hanging

    def _replace(self, worker: Worker) -> None:
        """Answers the requests that a hanging or dead worker computed, and starts another in its place."""
        if worker not in self._workers:
            return
        self._workers.remove(worker)
        with self._changed:
            worker.abandoned = True
            batch, worker.batch = worker.batch, None
            if batch is not None:
                self._scheduler.finish(batch)
            self._scheduler.workers = len(self._workers)
        self._device.worker_restarts.inc()
        self._alive(len(self._workers))
        if batch is not None:
            self._device.worker_busy_seconds.inc(time.monotonic() - batch.started)
            self._settle([(ticket, WorkersLost()) for ticket in batch.tickets])
        if self._closed:
            return
        replacing = self._loop.create_task(self._restart_worker(worker.number))
        self._replacing.add(replacing)
        replacing.add_done_callback(self._replacing.discard)

    async def _restart_worker(self, number: int) -> None:
        while True:
            try:
                for profile in list(self._profiles):
                    profile.engines[number] = await asyncio.to_thread(profile.new_engine)
            except Exception:
                log.exception("the engines of worker %d could not be made anew; trying again", number)
                await asyncio.sleep(self._limits.hang_timeout)
            else:
                return self._start_worker(number)
