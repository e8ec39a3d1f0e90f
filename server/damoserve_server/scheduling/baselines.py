"""Policies that the server's is compared with: the usual ones of other servers, and the best published ones.

All take the queue in the order of urgency and start the first requests that allow the profile.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from damoserve_server.scheduling.policy import Cost, Decision, P, QueueState, Start, W, urgency


@dataclass(frozen=True)
class FixedProfile:
    """Serves all requests that allow it by one profile, in the largest worthwhile batches, as other servers do."""

    profile: object

    def decide(self, state: QueueState[P, W]) -> Decision[P, W]:
        queue = _ready_by_urgency(state)
        if not queue:
            return None
        allowed = queue[0].requirements.allowed
        return _start(state, queue, _among(allowed, self.profile, allowed[0]))


@dataclass(frozen=True)
class StaticTiers:
    """Serves each request by the profile of its budget, as a table says that was made beforehand."""

    table: tuple[tuple[float, object], ...]
    """Least budget in seconds, and profile; the longest budget first."""

    def decide(self, state: QueueState[P, W]) -> Decision[P, W]:
        queue = _ready_by_urgency(state)
        if not queue:
            return None
        head = queue[0]
        budget = head.requirements.due - head.ready_at
        named = next((profile for least, profile in self.table if budget >= least), self.table[-1][1])
        allowed = head.requirements.allowed
        return _start(state, queue, _among(allowed, named, allowed[-1]))


@dataclass
class ModelSwitching:
    """Serves by one profile at a time, chosen once a period by the rate of arrivals (Model-Switching, HotCloud 2020).

    The paper tabulates the accuracy in time for every rate; here the load that a profile can bear stands for the table.
    """

    period: float = 1.0
    bearable: float = 0.7
    """Utilisation up to which queues stay short enough."""
    _profile: object = None
    _until: float = field(default=float("-inf"))

    def decide(self, state: QueueState[P, W]) -> Decision[P, W]:
        queue = _ready_by_urgency(state)
        if not queue:
            return None
        if state.now >= self._until:
            self._profile, self._until = self._switch(state), state.now + self.period
        allowed = queue[0].requirements.allowed
        return _start(state, queue, _among(allowed, self._profile, allowed[-1]))

    def _switch(self, state: QueueState[P, W]) -> P:
        workers = state.free + len(state.busy)
        bearable = [
            p for p, cost in state.costs.items() if state.rate * cost.seconds_per_image <= self.bearable * workers
        ]
        if not bearable:
            return min(state.costs, key=lambda profile: state.costs[profile].seconds_per_image)
        return max(bearable, key=lambda profile: state.costs[profile].accuracy)


@dataclass(frozen=True)
class SlackFit:
    """Picks a bucket of batch latency by the time that the most urgent request has left (SuperServe, NSDI 2025).

    A bucket holds the profile and batch size with the largest batch that end by its edge; of equal batches the most
    accurate.
    """

    buckets: int = 16

    def decide(self, state: QueueState[P, W]) -> Decision[P, W]:
        queue = _ready_by_urgency(state)
        if not queue:
            return None
        head = queue[0]
        pairs = [
            (state.costs[profile].expected(size), size, state.costs[profile].accuracy, profile)
            for profile in head.requirements.allowed
            for size in state.costs[profile].sizes
        ]
        shortest, longest = min(pair[0] for pair in pairs), max(pair[0] for pair in pairs)
        step = (longest - shortest) / self.buckets
        slack = head.requirements.due - state.now
        edge = shortest + max(0, min(self.buckets, int((slack - shortest) / step) if step else 0)) * step
        fitting = [pair for pair in pairs if pair[0] <= edge + 1e-12]
        _, size, _, profile = max(fitting, key=lambda pair: (pair[1], pair[2]))
        return _start(state, queue, profile, size)


def _ready_by_urgency(state: QueueState[P, W]) -> list[W]:
    """Returns the requests that may start, the most urgent first."""
    quickest = _quickest(state.costs)
    ready = [ticket for ticket in state.waiting if ticket.ready]
    return sorted(
        ready, key=lambda ticket: urgency(ticket.requirements, state.now, quickest(ticket.requirements.allowed))
    )


def _quickest(costs: Mapping[P, Cost]) -> Callable[[tuple[P, ...]], float]:
    return lambda allowed: min(costs[profile].seconds[0] for profile in allowed)


def _among(allowed: tuple[P, ...], profile: object, otherwise: P) -> P:
    return next((candidate for candidate in allowed if candidate == profile), otherwise)


def _start(state: QueueState[P, W], queue: list[W], profile: P, most: int | None = None) -> Start[P, W]:
    members = [ticket for ticket in queue if profile in ticket.requirements.allowed]
    sizes = [size for size in state.costs[profile].sizes if size <= min(len(members), most or len(members))]
    return Start(profile, tuple(islice(members, sizes[-1])))
