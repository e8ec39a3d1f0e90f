"""The server's policy once more, request by request and without arrays: slow, and to be read beside its definition.

Its numbers are those of the real one, term by term: that has to decide alike, whatever the state.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf
from typing import Any

from damoserve_server.scheduling.deadline import (
    HYSTERESIS,
    NEGLIGIBLE_HOLD,
    SAME_ACCURACY,
    SMALLEST_WORK,
    UNANNOUNCED_HOLD_SHARE,
)
from damoserve_server.scheduling.policy import Cost, Decision, Pause, QueueState, Start, urgency
from damoserve_server.scheduling.scheduler import Ticket


@dataclass(eq=False)
class Request:
    """One that waits. Whoever cannot be answered before it is due wants the quickest profile by its deadline."""

    ticket: Ticket[str, Any]
    now: float
    costs: dict[str, Cost]
    lost: bool = False

    @cached_property
    def quickest(self) -> str:
        """Of equals the most accurate."""
        return min(
            self.ticket.requirements.allowed, key=lambda name: (self.costs[name].seconds[0], -self.costs[name].accuracy)
        )

    @cached_property
    def hopeless(self) -> bool:
        return self.now + self.costs[self.quickest].seconds[0] > self.ticket.requirements.due

    @property
    def due(self) -> float:
        requirements = self.ticket.requirements
        return requirements.deadline if self.hopeless else requirements.due

    @property
    def allowed(self) -> Sequence[str]:
        """The most accurate first."""
        wanted = [self.quickest] if self.hopeless else self.ticket.requirements.allowed
        return sorted(wanted, key=lambda name: -self.costs[name].accuracy)

    @property
    def place(self) -> float:
        return urgency(self.ticket.requirements, self.now, self.costs[self.quickest].seconds[0])

    def may_start(self, profile: str) -> bool:
        return self.ticket.ready and profile in self.allowed

    def at(self, level: float) -> Cost:
        """Of its most accurate profile that takes no longer for an image than the level."""
        fitting = (name for name in self.allowed if self.costs[name].seconds_per_image <= level)
        return self.costs[next(fitting, self.quickest)]

    def work(self, level: float) -> float:
        return 0.0 if self.lost else self.at(level).seconds_per_image


@dataclass
class Option:
    """A batch that could be started."""

    profile: str
    members: list[Request]
    seconds: float
    cautious: float
    """The seconds that are reckoned with."""


class Plain:
    """A policy."""

    def __init__(self, max_wait: float) -> None:
        self._max_wait = max_wait

    def decide(self, state: QueueState[str, Any]) -> Decision[str, Any]:
        if not any(ticket.ready for ticket in state.waiting):
            return None
        queue = Queue(state)
        best = queue.best()
        until = self._pause(queue, best)
        return Start(best.profile, tuple(one.ticket for one in best.members)) if until is None else Pause(until)

    def _pause(self, queue: "Queue", best: Option) -> float | None:
        state, size, cost = queue.state, len(best.members), queue.costs[best.profile]
        larger = min((other for other in cost.sizes if other > size), default=None)
        if larger is None or state.free > 1:
            return None
        missing = larger - size
        delay = missing / state.rate if state.rate else inf
        coming = sorted(
            one.ticket.ready_at for one in queue.line if not one.ticket.ready and best.profile in one.allowed
        )
        if len(coming) >= missing:
            delay = min(delay, max(coming[missing - 1] - state.now, 0.0))
        gain = cost.expected(size) + cost.expected(missing) - cost.expected(larger)
        waited = state.now - min(one.ticket.ready_at for one in best.members)
        if delay < gain:
            left = self._max_wait - waited
            wait = min(max(delay, gain / 8), left)
        else:
            left = wait = min(self._max_wait, UNANNOUNCED_HOLD_SHARE * cost.expected(size)) - waited
        first_due = min(one.due for one in best.members) - state.now
        spare = min(first_due, min(queue.slack(one, queue.levels[0]) for one in queue.line) + cost.expected(size))
        return None if left <= NEGLIGIBLE_HOLD or wait >= spare - cost.expected(larger) else state.now + wait


class Queue:
    """What waits, the most urgent first."""

    def __init__(self, state: QueueState[str, Any]) -> None:
        self.state = state
        self.costs = dict(state.costs)
        self.workers = state.free + len(state.busy)
        self.levels = sorted({cost.seconds_per_image for cost in self.costs.values()})
        self.line = sorted((Request(each, state.now, self.costs) for each in state.waiting), key=lambda one: one.place)
        self.head = next(one for one in self.line if one.ticket.ready)
        lost = [one for one in self.line if self.slack(one, self.levels[0]) < 0 and one is not self.head]
        for one in lost:
            one.lost = True

    def slack(self, one: Request, level: float) -> float:
        """The seconds that it has left if all before it are served, shared by the workers; nothing saves the lost."""
        if one.lost:
            return inf
        latest = one.due - self.state.now - one.at(level).seconds[0]
        before = self.line[: self.line.index(one)]
        return latest - (self._busy(latest) + sum(other.work(level) for other in before)) / self.workers

    def best(self) -> Option:
        options = self._options()
        values = [max(self._value(option, place) for place in range(len(self.levels))) for option in options]
        if max(values) > -inf:
            return next(o for o, value in zip(options, values, strict=True) if value >= max(values) - SAME_ACCURACY)
        in_time = (option for option in options if self._is_in_time(option))
        return next(in_time, None) or min(options, key=lambda option: option.seconds)

    def _options(self) -> list[Option]:
        """The quickest for an image first; of equals the most accurate, and the smaller."""
        found = []
        for profile in self.head.allowed:
            cost = self.costs[profile]
            startable = [one for one in self.line if one.may_start(profile)]
            caution = 1 + HYSTERESIS if cost.accuracy > self.state.last_accuracy else 1.0
            for each, size, seconds in cost.batches:
                if size <= ceil(len(startable) / self.state.free):
                    option = Option(profile, startable[:size], seconds, seconds * caution)
                    found.append((each, -cost.accuracy, size, option))
        return [option for *_, option in sorted(found, key=lambda entry: entry[:3])]

    def _is_in_time(self, option: Option) -> bool:
        return all(one.lost or self.state.now + option.cautious <= one.due for one in option.members)

    def _value(self, option: Option, place: int) -> float:
        """The mean accuracy if the rest is served at this level, and some of it at the next."""
        spare = self._spare(option, self.levels[place])
        if not self._is_in_time(option) or spare < 0:
            return -inf
        work, accuracy = self._rest(option, self.levels[place])
        if place + 1 < len(self.levels):
            more_work, more_accuracy = self._rest(option, self.levels[place + 1])
            risen = min(max(spare / max(more_work - work, SMALLEST_WORK), 0.0), 1.0)
            accuracy += risen * (more_accuracy - accuracy)
        return (len(option.members) * self.costs[option.profile].accuracy + accuracy) / self._count(option)

    def _count(self, option: Option) -> float:
        """All that wait, and those that come during the batch."""
        return len(self.line) + self.state.rate * option.cautious

    def _rest(self, option: Option, level: float) -> tuple[float, float]:
        """The work, and the sum of accuracies, of all but the members. Who comes wants what those want that wait."""
        more = self._count(option) / len(self.line)
        work = more * _sum(one.work(level) for one in self.line) - _sum(one.work(level) for one in option.members)
        all_, members = (_sum(one.at(level).accuracy for one in group) for group in (self.line, option.members))
        return work, more * all_ - members

    def _spare(self, option: Option, level: float) -> float:
        """The seconds of a worker that are to spare if the rest is served at this level."""
        last = self.line.index(option.members[-1])
        taken = _sum(one.work(level) for one in option.members)
        spare = [(self.slack(one, level)) * self.workers - (option.cautious - taken) for one in self.line[last + 1 :]]
        passed = [one for one in self.line[:last] if not one.may_start(option.profile)]
        spare += [self.slack(one, level) * self.workers - option.cautious for one in passed]
        if self.state.rate > 0:
            alone = _sum(one.at(level).seconds[0] for one in self.line) / len(self.line)
            latest = option.cautious + self.state.budget - alone
            work, _ = self._rest(option, level)
            spare.append(latest * self.workers - (self._busy(latest) + option.cautious + work))
        return min(spare, default=inf)

    def _busy(self, until: float) -> float:
        """What the busy workers do not have until then."""
        return _sum(min(busy, max(until, 0.0)) for busy in self.state.busy)


def _sum(values: Iterable[float]) -> float:
    return sum(values, 0.0)
