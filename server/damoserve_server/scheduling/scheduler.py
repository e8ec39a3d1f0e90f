"""The one queue of a device: lets requests in, hands each out exactly once, and asks the policy what to compute.

No threads, no event loop, no clock of its own: every decision can be tested. A request is let in when it arrives, bound
to no profile, and counts while its image is still being decoded; it may start once it is ready.
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
    """Why a batch took no more requests."""

    FULL = "full"
    """No larger batch is worth forming."""
    ALL_READY = "all_ready"
    """Nobody else could join, and the policy did not wait."""
    WAITED = "waited"
    """Nobody else could join, though the policy had waited."""
    SMALLER = "smaller"
    """More could have joined; the policy left them to other workers, or wanted to be done sooner."""


@dataclass(eq=False, slots=True)
class Ticket(Generic[P, T]):
    """A request in the queue; times are on the clock of the scheduler."""

    requirements: Requirements[P]
    ready_at: float
    """Until it is ready, an estimate."""
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
    """Since when a worker was free and waited for company; infinite if it did not."""

    def remaining(self, now: float) -> float:
        """Seconds until it is expected to end: what is overdue is expected to be so for as long again."""
        return abs(self.expected_end - now)


class Scheduler(Generic[P, T]):
    """Each ticket leaves by `take`, `drop`, `close` or `withdraw`, whichever is first."""

    def __init__(
        self, policy: Policy, cost: Callable[[P], Cost], *, max_queue: int, clock: Callable[[], float]
    ) -> None:
        """`cost` is what a profile is expected to take by now."""
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
        """How many batches may run at the same time; to be kept up to date."""

    def queued(self, *, ready: bool) -> int:
        return sum(ticket.ready == ready for ticket in self._waiting)

    @property
    def running(self) -> int:
        """Batches that are being computed."""
        return len(self._running)

    def choose(self, alternatives: Sequence[Requirements[P]], decoding: float) -> Requirements[P]:
        """Of a request's alternatives the first that would be answered by when it is due, else the soonest to be."""
        if len(alternatives) == 1 or not self.workers:
            return alternatives[0]
        ends = [self.soonest_end(Ticket(requirements, self._clock() + decoding)) for requirements in alternatives]
        in_time = (
            requirements for requirements, end in zip(alternatives, ends, strict=True) if end <= requirements.due
        )
        return next(in_time, alternatives[ends.index(min(ends))])

    def admit(self, requirements: Requirements[P], decoding: float) -> Ticket[P, T]:
        """Lets a request in whose image will be decoded in so many seconds.

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
        """The request may start. Raises DeadlineExpired, DeadlineUnreachable or ShuttingDown if it has been dropped."""
        now = self._clock()
        if ticket not in self._waiting:
            raise ShuttingDown if self._closed else self._lateness(ticket, now)
        ticket.payload, ticket.ready_at, ticket.ready = payload, now, True
        self._resume_at = -inf

    def withdraw(self, ticket: Ticket[P, T]) -> bool:
        """Takes a waiting request out. False when it has left before."""
        if ticket not in self._waiting:
            return False
        self._remove([ticket])
        return True

    def drop(self) -> list[tuple[Ticket[P, T], DamoserveError]]:
        """Hands out the requests that are not to be computed, and why.

        Those whose deadline has passed; and once a worker is free, those that it could not finish in time. Until then
        nothing is lost by waiting: the estimate may fall.
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
        """Hands out all that wait, and lets nothing more in."""
        self._closed = True
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    def take(self) -> Batch[P, T] | None:
        """The batch to start now, if a worker is free and the policy wants one; to be given to `finish` later.

        `drop` comes first: the policy may choose any that wait.
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
        """Its worker is free again, or is given up."""
        self._running.discard(batch)
        self._resume_at = -inf

    def next_take(self) -> float | None:
        """When `take` may have something, if nothing else happens before: None for never. It may have passed."""
        return self._resume_at if self._resume_at > -inf and self._waiting else None

    def soonest_end(self, ticket: Ticket[P, T]) -> float:
        """When a request would be answered if it and all that are more urgent were served by the quickest profile."""
        now = self._clock()
        quickest = self._quickest()
        place = urgency(ticket.requirements, now, quickest(ticket)[0])
        ahead = Counter(
            quickest(other)[1]
            for other in self._waiting
            if other is not ticket and urgency(other.requirements, now, quickest(other)[0]) <= place
        )
        free_at = [now + batch.remaining(now) for batch in self._running][: self.workers]
        free_at += [now] * (self.workers - len(free_at))
        heapify(free_at)
        mine = quickest(ticket)[1]
        company = 1
        for profile, count in ahead.items():
            cost = self._cost(profile)
            full, rest = divmod(count, cost.sizes[-1])
            sizes = [cost.sizes[-1]] * full
            if profile == mine:
                company += rest
            elif rest:
                sizes.append(rest)
            for size in sizes:
                heapreplace(free_at, free_at[0] + cost.expected(size))
        return max(free_at[0], ticket.ready_at) + self._cost(mine).expected(company)

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
        """Tells of a ticket its quickest profile, after the seconds that this needs for one image."""
        known: dict[tuple[P, ...], tuple[float, P]] = {}

        def quickest(ticket: Ticket[P, T]) -> tuple[float, P]:
            allowed = ticket.requirements.allowed
            if allowed not in known:
                known[allowed] = min(
                    ((self._cost(profile).expected(1), profile) for profile in allowed), key=itemgetter(0)
                )
            return known[allowed]

        return quickest

    def _lateness(self, ticket: Ticket[P, T], now: float) -> DamoserveError:
        deadline = ticket.requirements.deadline
        if deadline <= now:
            return DeadlineExpired("the time ran out while the request waited")
        return DeadlineUnreachable(self._quickest()(ticket)[0], deadline - now)
