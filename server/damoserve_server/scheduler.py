"""Which batch to compute next. No threads, no event loop, no clock of its own: every decision can be tested.

Each profile has a queue, the earliest deadline first; all queues together are bounded. A queue is ready when it fills a
batch, when its oldest request has waited long enough for others, or when its most urgent one cannot wait any longer. Of
the ready queues the one with the most urgent request runs, in the batch that serves most requests a second without
missing a deadline.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from heapq import heapify, heapreplace
from math import ceil, inf
from typing import Generic, TypeVar

from damoserve_server.errors import DamoserveError, DeadlineExpired, DeadlineUnreachable, QueueFull, ShuttingDown

SAME_THROUGHPUT = 1.05
"""Batch sizes whose seconds per image differ by less are equally good: noise must not switch batching off."""
HEAD_START = 0.25
"""Share of the expected time by which a wait for company ends early: timers are late, and estimates are medians."""

P = TypeVar("P", bound=Hashable)
T = TypeVar("T")


@dataclass(frozen=True)
class Policy:
    """The limits; times in seconds."""

    workers: int
    max_batch_size: int
    max_batch_wait: float
    max_queue: int
    """Of all profiles together: they share the workers."""


@dataclass(frozen=True, eq=False)
class Ticket(Generic[P, T]):
    """A request that waits; times as the clock gives them."""

    profile: P
    payload: T
    deadline: float
    enqueued: float


@dataclass(frozen=True, eq=False)
class Batch(Generic[P, T]):
    """Requests of one profile that are computed together."""

    profile: P
    tickets: tuple[Ticket[P, T], ...]
    expected_end: float


class Scheduler(Generic[P, T]):
    """Takes tickets in and hands each out exactly once: by `take`, `drop`, `close` or `cancel`."""

    def __init__(self, policy: Policy, expected: Callable[[P, int], float], clock: Callable[[], float]) -> None:
        """`expected(profile, batch_size)` is how many seconds a batch is expected to take."""
        self._policy = policy
        self._expected = expected
        self._clock = clock
        self._queues: dict[P, list[Ticket[P, T]]] = {}
        self._running: set[Batch[P, T]] = set()
        self._closed = False

    def queued(self, profile: P) -> int:
        return len(self._queues.get(profile, ()))

    def submit(self, profile: P, payload: T, deadline: float) -> Ticket[P, T]:
        """Queues a request.

        Raises QueueFull, DeadlineExpired, DeadlineUnreachable or ShuttingDown, and then keeps nothing of it.
        """
        now = self._clock()
        if self._closed:
            raise ShuttingDown
        if deadline <= now:
            raise DeadlineExpired("the time ran out before the network could start")
        needed = self.expected_wait(deadline) + self._expected(profile, 1)
        limit = self._policy.max_queue
        if sum(len(queue) for queue in self._queues.values()) >= limit:
            raise QueueFull(f"{limit} requests wait already; try again later", needed, limit=limit)
        if now + needed > deadline:
            raise DeadlineUnreachable(needed, deadline - now)
        ticket = Ticket(profile, payload, deadline, now)
        insort(self._queues.setdefault(profile, []), ticket, key=_deadline)
        return ticket

    def cancel(self, ticket: Ticket[P, T]) -> bool:
        """Drops a waiting request. False when it was handed out before."""
        queue = self._queues.get(ticket.profile, [])
        if ticket not in queue:
            return False
        queue.remove(ticket)
        return True

    def drop(self) -> list[tuple[Ticket[P, T], DamoserveError]]:
        """Hands out the requests that are not to be computed, and why: too little time is left, or none."""
        now = self._clock()
        dropped: list[tuple[Ticket[P, T], DamoserveError]] = []
        for profile, queue in self._queues.items():
            late = self._late(queue, now)
            dropped += [(ticket, _lateness(ticket, self._expected(profile, 1), now)) for ticket in queue[:late]]
            del queue[:late]
        return dropped

    def close(self) -> list[Ticket[P, T]]:
        """Hands out all that wait, and takes in nothing more."""
        self._closed = True
        waiting = [ticket for queue in self._queues.values() for ticket in queue]
        for queue in self._queues.values():
            queue.clear()
        return waiting

    def take(self) -> Batch[P, T] | None:
        """The batch to start now, if a worker is free and a queue is ready; to be given to `finish` later."""
        now = self._clock()
        ready = [tickets for tickets in self._live(now) if self._ready_at(tickets) <= now]
        if not ready or not self._free_workers:
            return None
        tickets = min(ready, key=lambda tickets: tickets[0].deadline)
        profile = tickets[0].profile
        share = _share(len(tickets), self._free_workers)
        ahead = tickets[: self._batch_size(profile, share, tickets[0].deadline - now)]
        for ticket in ahead:
            self._queues[profile].remove(ticket)
        batch = Batch(profile, tuple(ahead), now + self._expected(profile, len(ahead)))
        self._running.add(batch)
        return batch

    def finish(self, batch: Batch[P, T]) -> None:
        """Its worker is free again."""
        self._running.remove(batch)
        self._queues = {profile: queue for profile, queue in self._queues.items() if queue}

    def next_event(self) -> float | None:
        """When `take` or `drop` may have something, if nothing else happens before: None for never."""
        times = [queue[0].deadline for queue in self._queues.values() if queue]
        if self._free_workers:
            now = self._clock()
            times += [self._ready_at(tickets) for tickets in self._live(now)]
            times += [now for queue in self._queues.values() if self._late(queue, now)]
        return min(times, default=None)

    def expected_wait(self, deadline: float) -> float:
        """Seconds until a worker would be free for a request with this deadline, behind all that are more urgent."""
        now = self._clock()
        free_at = [max(0.0, batch.expected_end - now) for batch in self._running] + [0.0] * self._free_workers
        heapify(free_at)
        for profile, queue in self._queues.items():
            more_urgent = bisect_right(queue, deadline, key=_deadline)
            while more_urgent:
                size = self._batch_size(profile, _share(more_urgent, free_at.count(free_at[0])))
                heapreplace(free_at, free_at[0] + self._expected(profile, size))
                more_urgent -= size
        return free_at[0]

    @property
    def _free_workers(self) -> int:
        return self._policy.workers - len(self._running)

    def _batch_size(self, profile: P, waiting: int, left: float = inf) -> int:
        """How many of so many to compute together: the best throughput that ends within `left` seconds, 1 at least."""
        sizes = range(1, min(waiting, self._policy.max_batch_size) + 1)
        seconds = {size: self._expected(profile, size) for size in sizes}
        per_image = {size: seconds[size] / size for size in sizes if size == 1 or seconds[size] <= left}
        good_enough = SAME_THROUGHPUT * min(per_image.values())
        return max(size for size, each in per_image.items() if each <= good_enough)

    def _late(self, queue: list[Ticket[P, T]], now: float) -> int:
        """How many at the head of a queue have no time left; once one could start, also those with too little.

        Until then nothing is lost by waiting: the estimate may fall.
        """
        expired = bisect_right(queue, now, key=_deadline)
        if not queue or not self._free_workers:
            return expired
        return max(expired, bisect_left(queue, now + self._expected(queue[0].profile, 1), key=_deadline))

    def _live(self, now: float) -> list[list[Ticket[P, T]]]:
        """The requests of each profile that can still be answered in time, without profiles that have none."""
        live = [queue[self._late(queue, now) :] for queue in self._queues.values()]
        return [tickets for tickets in live if tickets]

    def _ready_at(self, tickets: list[Ticket[P, T]]) -> float:
        """When these requests of one profile should start."""
        if len(tickets) >= self._policy.max_batch_size:
            return tickets[0].enqueued
        waited_enough = min(ticket.enqueued for ticket in tickets) + self._policy.max_batch_wait
        latest_start = tickets[0].deadline - (1 + HEAD_START) * self._expected(tickets[0].profile, len(tickets))
        return min(waited_enough, latest_start)


def _deadline(ticket: Ticket[P, T]) -> float:
    return ticket.deadline


def _share(waiting: int, workers: int) -> int:
    """Of each worker, if so many are free at the same time: none is to idle while another takes all."""
    return ceil(waiting / workers)


def _lateness(ticket: Ticket[P, T], needed: float, now: float) -> DamoserveError:
    if ticket.deadline <= now:
        return DeadlineExpired("the time ran out while the request waited for the network")
    return DeadlineUnreachable(needed, ticket.deadline - now)
