"""The one queue of a device: admits requests, hands each out exactly once, and asks the policy what to compute.

It has no threads, no event loop and no clock of its own, so every decision can be tested; whoever shares it between
threads brings the lock. The life of a request is that of its ticket:

* `admit` binds it to no profile. It is refused here if it would be late even by the quickest profile that it allows,
  behind all that are more urgent. From now on it counts, also while its image is still being decoded.
* `make_ready` brings the decoded image. From now on the policy may start it.
* `take` hands it out as part of a batch, or `drop` with an error: once its deadline has passed or, where a worker is
  free and so the estimate final, once even the quickest profile is too slow. `withdraw` takes it out for a caller that
  has left, `close` for a server that stops.

What it promises: each ticket leaves exactly once, by the first of these four. Nothing is computed whose deadline has
passed. Never more batches run than there are workers, and a batch that was taken counts until `finish`. Which of the
requests is computed next is the policy's choice; that none waits for ever follows from `urgency`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from heapq import heapify, heapreplace
from math import inf
from operator import itemgetter
from typing import Generic, TypeVar

from damoserve_server.errors import (
    DamoserveError,
    DeadlineExpired,
    DeadlineUnreachable,
    QueueFull,
    ShuttingDown,
    WorkersLost,
)
from damoserve_server.scheduling.latency import Arrivals
from damoserve_server.scheduling.policy import Cost, P, Pause, Policy, QueueState, Requirements, Start, urgency

T = TypeVar("T")


class Closing(StrEnum):
    """The reason why a batch took no more requests, as metrics and traces are told it."""

    FULL = "full"
    """The batch has the largest size that is worth forming."""
    ALL_READY = "all_ready"
    """All requests that could join have joined, and the worker was not held for more."""
    WAITED = "waited"
    """All requests that could join have joined, after the worker was held for more."""
    SMALLER = "smaller"
    """More requests could have joined; the policy left them to other workers, or needed a quicker batch."""


@dataclass(eq=False, slots=True)
class Ticket(Generic[P, T]):
    """A request in the queue; times are on the clock of the scheduler."""

    requirements: Requirements[P]
    ready_at: float
    """Time at which its image was decoded; an estimate until it is ready."""
    payload: T | None = None
    ready: bool = False


@dataclass(frozen=True, eq=False)
class Batch(Generic[P, T]):
    """Requests that are computed together."""

    profile: P
    tickets: tuple[Ticket[P, T], ...]
    started: float
    expected_end: float
    closing: Closing = Closing.FULL
    held_since: float = inf
    """Time from which on a free worker was held for a larger batch; infinite if it was not."""

    def remaining(self, now: float) -> float:
        """Returns the seconds until it is expected to end; a batch that is overdue, to be so for as long again."""
        return abs(self.expected_end - now)


class Scheduler(Generic[P, T]):
    """The queue. Each ticket leaves by `take`, `drop`, `close` or `withdraw`, whichever is first."""

    def __init__(
        self, policy: Policy, cost: Callable[[P], Cost], *, max_queue: int, clock: Callable[[], float]
    ) -> None:
        """Asks `cost` at every decision what a profile is expected to take by now."""
        self._policy = policy
        self._cost = cost
        self._max_queue = max_queue
        self._clock = clock
        self._arrivals = Arrivals()
        self._waiting: dict[Ticket[P, T], None] = {}
        self._running: set[Batch[P, T]] = set()
        self._last_accuracy = inf
        self._resume_at = -inf
        self._held_since = inf
        self._closed = False
        self.workers = 0
        """Number of batches that may run at the same time; the owner keeps it up to date."""

    def queued(self, *, ready: bool) -> int:
        """Counts the requests that wait and are ready, or that wait and are not."""
        return sum(ticket.ready == ready for ticket in self._waiting)

    @property
    def running(self) -> int:
        """Number of batches that are being computed."""
        return len(self._running)

    def choose(self, alternatives: Sequence[Requirements[P]], decoding: float) -> Requirements[P]:
        """Returns the first alternative that would be answered by when it is due, or else the one answered soonest."""
        if len(alternatives) == 1 or not self.workers:
            return alternatives[0]
        ends = [self.soonest_end(Ticket(requirements, self._clock() + decoding)) for requirements in alternatives]
        in_time = (
            requirements for requirements, end in zip(alternatives, ends, strict=True) if end <= requirements.due
        )
        return next(in_time, alternatives[ends.index(min(ends))])

    def admit(self, requirements: Requirements[P], decoding: float) -> Ticket[P, T]:
        """Admits a request whose image will be decoded in `decoding` seconds.

        Raises ShuttingDown, DeadlineExpired, WorkersLost, DeadlineUnreachable or QueueFull, and keeps nothing then.
        """
        now = self._clock()
        if self._closed:
            raise ShuttingDown
        if requirements.deadline <= now:
            raise DeadlineExpired("the time ran out before the request could be looked at")
        if not self.workers:
            raise WorkersLost
        ticket: Ticket[P, T] = Ticket(requirements, now + decoding)
        end = self.soonest_end(ticket)
        if end > requirements.deadline:
            raise DeadlineUnreachable(end - now, requirements.deadline - now)
        if len(self._waiting) >= self._max_queue:
            message = f"{self._max_queue} requests wait already; try again later"
            raise QueueFull(message, end - now, limit=self._max_queue)
        self._arrivals.add(now, requirements.due - now)
        self._waiting[ticket] = None
        return ticket

    def make_ready(self, ticket: Ticket[P, T], payload: T) -> None:
        """Lets a request start. Raises DeadlineExpired, DeadlineUnreachable or ShuttingDown if it has been dropped."""
        now = self._clock()
        if ticket not in self._waiting:
            raise ShuttingDown if self._closed else self._lateness(ticket, now)
        ticket.payload, ticket.ready_at, ticket.ready = payload, now, True
        self._resume_at = -inf

    def withdraw(self, ticket: Ticket[P, T]) -> bool:
        """Takes a request out that waits. Returns False when it has left before."""
        if ticket not in self._waiting:
            return False
        self._remove([ticket])
        return True

    def drop(self) -> list[tuple[Ticket[P, T], DamoserveError]]:
        """Takes out the requests that are not to be computed, each with the error that answers it.

        These are those whose deadline has passed and, once a worker is free, those that it could not finish in time.
        Until then nothing is lost by waiting: the estimate may fall.
        """
        now = self._clock()
        free = len(self._running) < self.workers
        quickest = self._quickest()
        late = [
            ticket
            for ticket in self._waiting
            if ticket.requirements.deadline <= now
            or (free and now + quickest(ticket)[0] > ticket.requirements.deadline)
        ]
        self._remove(late)
        return [(ticket, self._lateness(ticket, now)) for ticket in late]

    def close(self) -> list[Ticket[P, T]]:
        """Takes out all that wait, and admits nothing more."""
        self._closed = True
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    def take(self) -> Batch[P, T] | None:
        """Returns the batch to start now, if a worker is free and the policy wants one; give it to `finish` later.

        Call `drop` first: the policy may choose any request that waits.
        """
        now = self._clock()
        free = self.workers - len(self._running)
        if free <= 0 or not self._waiting or now < self._resume_at:
            return None
        self._resume_at = -inf
        decision = self._policy.decide(self._state(now, free))
        if isinstance(decision, Pause):
            self._resume_at = decision.until
            self._held_since = min(self._held_since, now)
            return None
        held_since, self._held_since = self._held_since, inf
        if decision is None:
            return None
        self._remove(decision.tickets)
        cost = self._cost(decision.profile)
        end = now + cost.expected(len(decision.tickets))
        closing = self._closing(decision, cost, held_since < now)
        batch = Batch(decision.profile, decision.tickets, now, end, closing, held_since)
        self._running.add(batch)
        self._last_accuracy = cost.accuracy
        return batch

    def finish(self, batch: Batch[P, T]) -> None:
        """Counts a batch no longer: its worker is free again, or abandoned."""
        self._running.discard(batch)
        self._resume_at = -inf

    def next_take(self) -> float | None:
        """Returns the time to call `take` again if nothing else happens before; it may have passed; None for never."""
        return self._resume_at if self._resume_at > -inf and self._waiting else None

    def soonest_end(self, ticket: Ticket[P, T]) -> float:
        """Returns when a request would be answered if all up to it were served by their quickest profiles."""
        now = self._clock()
        quickest = self._quickest()
        own_urgency = urgency(ticket.requirements, now, quickest(ticket)[0])
        ahead = Counter(
            quickest(other)[1]
            for other in self._waiting
            if other is not ticket and urgency(other.requirements, now, quickest(other)[0]) <= own_urgency
        )
        free_at = [now + batch.remaining(now) for batch in self._running][: self.workers]
        free_at += [now] * (self.workers - len(free_at))
        heapify(free_at)
        own_profile = quickest(ticket)[1]
        batch_size = 1  # the request itself, and what is left over of those that its profile serves ahead of it
        for profile, count in ahead.items():
            cost = self._cost(profile)
            full, left_over = divmod(count, cost.sizes[-1])
            sizes = [cost.sizes[-1]] * full
            if profile == own_profile:
                batch_size += left_over
            elif left_over:
                sizes.append(left_over)
            for size in sizes:
                heapreplace(free_at, free_at[0] + cost.expected(size))
        return max(free_at[0], ticket.ready_at) + self._cost(own_profile).expected(batch_size)

    def _remove(self, tickets: Iterable[Ticket[P, T]]) -> None:
        for ticket in tickets:
            del self._waiting[ticket]
        if not any(ticket.ready for ticket in self._waiting):
            self._held_since = inf

    def _closing(self, started: Start[P, Ticket[P, T]], cost: Cost, held: bool) -> Closing:
        if len(started.tickets) >= cost.sizes[-1]:
            return Closing.FULL
        if any(ticket.ready and started.profile in ticket.requirements.allowed for ticket in self._waiting):
            return Closing.SMALLER
        return Closing.WAITED if held else Closing.ALL_READY

    def _state(self, now: float, free: int) -> QueueState[P, Ticket[P, T]]:
        kinds = {ticket.requirements.allowed for ticket in self._waiting}
        costs: Mapping[P, Cost] = {profile: self._cost(profile) for allowed in kinds for profile in allowed}
        busy = tuple(batch.remaining(now) for batch in self._running)
        rate, budget = self._arrivals.recent(now)
        return QueueState(now, list(self._waiting), costs, free, busy, rate, budget, self._last_accuracy)

    def _quickest(self) -> Callable[[Ticket[P, T]], tuple[float, P]]:
        """Returns a function from a ticket to the seconds of its quickest profile for one image, and that profile."""
        by_allowed: dict[tuple[P, ...], tuple[float, P]] = {}

        def quickest(ticket: Ticket[P, T]) -> tuple[float, P]:
            allowed = ticket.requirements.allowed
            if allowed not in by_allowed:
                by_allowed[allowed] = min(
                    ((self._cost(profile).expected(1), profile) for profile in allowed), key=itemgetter(0)
                )
            return by_allowed[allowed]

        return quickest

    def _lateness(self, ticket: Ticket[P, T], now: float) -> DamoserveError:
        deadline = ticket.requirements.deadline
        if deadline <= now:
            return DeadlineExpired("the time ran out while the request waited")
        return DeadlineUnreachable(self._quickest()(ticket)[0], deadline - now)
