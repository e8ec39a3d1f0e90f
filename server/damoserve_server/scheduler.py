"""Which batch to compute next. No threads, no event loop, no clock of its own: every decision can be tested.

Each profile has a bounded queue, the earliest deadline first. A queue is ready when it fills a batch, when its oldest
request has waited long enough for others, or when its most urgent one cannot wait any longer. Of the ready queues the
one with the most urgent request runs.
"""

from bisect import bisect_right, insort
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import Generic, TypeVar

from damoserve_server.errors import DeadlineExpired, DeadlineUnreachable, QueueFull

P = TypeVar("P", bound=Hashable)
T = TypeVar("T")


@dataclass(frozen=True)
class Policy:
    """The limits; times in seconds."""

    workers: int
    max_batch_size: int
    max_batch_wait: float
    max_queue: int


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
    """Takes tickets in and hands each out exactly once: in a batch, as expired, or to the one who cancels it."""

    def __init__(self, policy: Policy, expected: Callable[[P, int], float], clock: Callable[[], float]) -> None:
        """`expected(profile, batch_size)` is how many seconds a batch is expected to take."""
        self._policy = policy
        self._expected = expected
        self._clock = clock
        self._queues: dict[P, list[Ticket[P, T]]] = {}
        self._running: set[Batch[P, T]] = set()

    def queued(self, profile: P) -> int:
        return len(self._queues.get(profile, ()))

    def submit(self, profile: P, payload: T, deadline: float) -> Ticket[P, T]:
        """Queues a request. Raises QueueFull, DeadlineExpired or DeadlineUnreachable, and then keeps nothing of it."""
        now = self._clock()
        if deadline <= now:
            raise DeadlineExpired("the time ran out before the network could start")
        queue = self._queues.setdefault(profile, [])
        needed = self.expected_wait(deadline) + self._expected(profile, 1)
        if len(queue) >= self._policy.max_queue:
            limit = self._policy.max_queue
            raise QueueFull(f"{limit} requests wait for this profile; try again later", needed, limit=limit)
        if now + needed > deadline:
            raise DeadlineUnreachable(needed, deadline - now)
        ticket = Ticket(profile, payload, deadline, now)
        insort(queue, ticket, key=_deadline)
        return ticket

    def cancel(self, ticket: Ticket[P, T]) -> bool:
        """Drops a waiting request. False when it was handed out before."""
        queue = self._queues[ticket.profile]
        if ticket not in queue:
            return False
        queue.remove(ticket)
        return True

    def expire(self) -> list[Ticket[P, T]]:
        """Hands out the requests whose deadline has come; they are not computed."""
        now = self._clock()
        expired = []
        for queue in self._queues.values():
            count = bisect_right(queue, now, key=_deadline)
            expired += queue[:count]
            del queue[:count]
        return expired

    def take(self) -> Batch[P, T] | None:
        """The batch to start now, if a worker is free and a queue is ready; to be given to `finish` later."""
        now = self._clock()
        ready = [tickets for tickets in self._live(now) if self._ready_at(tickets) <= now]
        if not ready or not self._free_workers:
            return None
        ahead = min(ready, key=lambda tickets: tickets[0].deadline)[: self._policy.max_batch_size]
        profile = ahead[0].profile
        for ticket in ahead:
            self._queues[profile].remove(ticket)
        batch = Batch(profile, tuple(ahead), now + self._expected(profile, len(ahead)))
        self._running.add(batch)
        return batch

    def finish(self, batch: Batch[P, T]) -> None:
        """Its worker is free again."""
        self._running.remove(batch)

    def next_event(self) -> float | None:
        """When `take` or `expire` may have something, if nothing else happens before: None for never."""
        times = [queue[0].deadline for queue in self._queues.values() if queue]
        if self._free_workers:
            times += [self._ready_at(tickets) for tickets in self._live(self._clock())]
        return min(times, default=None)

    def expected_wait(self, deadline: float) -> float:
        """Seconds until a worker would be free for a request with this deadline, behind all that are more urgent."""
        now = self._clock()
        free_at = [max(0.0, batch.expected_end - now) for batch in self._running] + [0.0] * self._free_workers
        heapify(free_at)
        for profile, queue in self._queues.items():
            more_urgent = bisect_right(queue, deadline, key=_deadline)
            seconds = self._expected(profile, 1) if more_urgent else 0.0
            for _ in range(more_urgent):
                heapreplace(free_at, free_at[0] + seconds)
        return free_at[0]

    @property
    def _free_workers(self) -> int:
        return self._policy.workers - len(self._running)

    def _live(self, now: float) -> list[list[Ticket[P, T]]]:
        """The requests of each profile whose deadline is still to come, without profiles that have none."""
        live = [queue[bisect_right(queue, now, key=_deadline) :] for queue in self._queues.values()]
        return [tickets for tickets in live if tickets]

    def _ready_at(self, tickets: list[Ticket[P, T]]) -> float:
        """When these requests of one profile should start."""
        if len(tickets) >= self._policy.max_batch_size:
            return tickets[0].enqueued
        waited_enough = min(ticket.enqueued for ticket in tickets) + self._policy.max_batch_wait
        latest_start = tickets[0].deadline - self._expected(tickets[0].profile, len(tickets))
        return min(waited_enough, latest_start)


def _deadline(ticket: Ticket[P, T]) -> float:
    return ticket.deadline
