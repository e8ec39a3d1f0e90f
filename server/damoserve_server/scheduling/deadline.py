"""The server's policy: the most accurate answer that is still in time.

Requests wait in the order in which they are due, bound to no profile. When a worker is free, every profile and batch
size for the head of the queue is weighed against every level of haste at which the rest could be served after it: a
level is the longest time an image may take, and each request gets its most accurate profile within that. Of the pairs
that leave nobody late, those still to come included, the one with the highest accuracy for all is started. If somebody
is late whatever is done, what drains the queue soonest is.

Whether nobody is late is told from a model in which the workers share the waiting work evenly. It is exact for one
worker; for several it forgets that an image cannot be divided.
"""

from dataclasses import dataclass
from math import inf
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from damoserve_server.scheduling.policy import URGENCY_STEP, Decision, P, Pause, QueueState, Start, W, urgency

HYSTERESIS = 0.1
"""A profile more accurate than the last one has to be in time even if it took so much longer: no flapping."""

UNANNOUNCED_WAIT_SHARE = 0.04
"""So much of its own time a batch waits for company that nobody announced, where company would gain: the first request
of a burst comes alone, and on a slow engine takes the place of a full batch."""
SAME_ACCURACY = 1e-6
TINY = 1e-9
INSTANT = 1e-6
"""Seconds not worth a pause, which would be over before it began."""

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
N = TypeVar("N", bound=np.generic)


class DeadlinePolicy:
    """See the module."""

    def __init__(self, max_wait: float) -> None:
        """`max_wait`, in seconds, bounds how long a free worker waits to fill a batch; it does so only for a gain."""
        self._max_wait = max_wait

    def decide(self, state: QueueState[P, W]) -> Decision[P, W]:
        if not any(ticket.ready for ticket in state.waiting):
            return None
        if len(state.costs) == 1 and max(cost.sizes[-1] for cost in state.costs.values()) == 1:
            return _first(state)
        line = _line_up(state)
        options = _options(line, state)
        best = _best(line, options, state)
        column = int(options.profile[best])
        members = options.members[: options.size[best], column]
        until = self._company(line, state, column, members)
        if until is not None:
            return Pause(until)
        return Start(line.profiles[column], tuple(line.tickets[index] for index in members))

    def _company(self, line: "_Line", state: QueueState[P, W], column: int, members: NDArray[np.intp]) -> float | None:
        """Until when to wait for a larger batch of that profile, if it gains time and makes nobody late."""
        cost, size = state.costs[line.profiles[column]], len(members)
        larger = next((other for other in cost.sizes if other > size), None)
        if larger is None or state.free > 1:
            return None
        waited = state.now - min(line.tickets[index].ready_at for index in members)
        joining = np.flatnonzero(line.allowed[:, column] & ~line.ready)
        coming = sorted(line.tickets[index].ready_at for index in joining)[: larger - size]
        delay = (larger - size) / state.rate if state.rate else inf
        if len(coming) == larger - size:
            delay = min(delay, max(coming[-1] - state.now, 0.0))
        gain = cost.expected(size) + cost.expected(larger - size) - cost.expected(larger)
        if delay < gain:
            left = self._max_wait - waited
            wait = min(max(delay, gain / 8), left)  # arrivals are not regular
        else:
            wait = left = min(self._max_wait, UNANNOUNCED_WAIT_SHARE * cost.expected(size)) - waited
        spare = min(float(line.due[members].min()) - state.now, float(line.slack[:, 0].min()) + cost.expected(size))
        if left <= INSTANT or wait >= spare - cost.expected(larger):
            return None
        return state.now + float(wait)


def _first(state: QueueState[P, W]) -> Start[P, W]:
    """Without a choice of profile or batch size, the most urgent starts."""
    [(profile, cost)] = state.costs.items()
    ready = (ticket for ticket in state.waiting if ticket.ready)
    return Start(profile, (min(ready, key=lambda ticket: urgency(ticket.requirements, state.now, cost.seconds[0])),))


def _line_up(state: QueueState[P, W]) -> "_Line":
    profiles = tuple(sorted(state.costs, key=lambda profile: -state.costs[profile].accuracy))
    costs = [state.costs[profile] for profile in profiles]
    table = _Table(
        np.array([[cost.share for cost in costs], [cost.accuracy for cost in costs]]),
        np.array([cost.seconds[0] for cost in costs]),
    )
    kinds: dict[tuple[P, ...], int] = {}
    kind = np.array([kinds.setdefault(ticket.requirements.allowed, len(kinds)) for ticket in state.waiting])
    rows = np.array([[profile in allowed for profile in profiles] for allowed in kinds])
    return _Line.of(state, profiles, table, rows, kind)


@dataclass(frozen=True)
class _Table:
    """What each profile takes and gives."""

    both: Floats
    """`[2, P]` Seconds for an image in the best batch, and accuracy."""
    alone: Floats
    """`[P]` Seconds for one image."""

    @property
    def share(self) -> Floats:
        share: Floats = self.both[0]
        return share

    @property
    def accuracy(self) -> Floats:
        accuracy: Floats = self.both[1]
        return accuracy


@dataclass(frozen=True)
class _Line:
    """The queue, the most urgent first: n requests, P profiles, Q levels."""

    tickets: list[Any]
    profiles: tuple[Any, ...]
    table: _Table
    ready: Flags
    due: Floats
    """`[n]` When each is due, or has its deadline if that is past hope."""
    allowed: Flags
    """`[n, P]`"""
    startable: Flags
    """`[n, P]` Allowed, and ready."""
    lost: Flags
    """`[n]` Late whatever is done."""
    at_level: Floats
    """`[2, n, Q]` Seconds of work, and accuracy; the first level is the quickest."""
    alone: Floats
    """`[n, Q]` Seconds from start to answer."""
    slack: Floats
    """`[n, Q]` Seconds that each has left if all are served in this order; infinite for the lost."""

    @staticmethod
    def of(
        state: QueueState[P, W], profiles: tuple[P, ...], table: _Table, rows: Flags, kind: NDArray[np.int64]
    ) -> "_Line":
        """`rows` `[kinds, P]` says which profiles each kind of request allows, `kind` `[n]` of which each is."""
        alternatives = [ticket.requirements for ticket in state.waiting]
        quickest = np.where(rows, table.alone, inf).argmin(axis=1)
        deadline = np.array([requirements.deadline for requirements in alternatives])
        due = np.array([requirements.due for requirements in alternatives])
        hopeless = state.now + table.alone[quickest][kind] > due
        due = np.where(hopeless, deadline, due)
        urgency_share = np.array([requirements.priority for requirements in alternatives]) * URGENCY_STEP
        arrival = np.array([requirements.arrival for requirements in alternatives])
        order = np.argsort(arrival + urgency_share * (due - arrival), kind="stable")  # as `urgency` says
        kind, hopeless, due = kind[order], hopeless[order], due[order]
        tickets = [state.waiting[index] for index in order]
        allowed, picked = rows.take(kind, axis=0), _levels(rows, table, quickest).take(kind, axis=0)
        if hopeless.any():  # all profiles but the quickest are behind them
            allowed[hopeless] = np.eye(len(profiles), dtype=bool)[quickest[kind[hopeless]]]
            picked[hopeless] = quickest[kind[hopeless]][:, None]
        at_level, alone = table.both.take(picked, axis=1), table.alone.take(picked)
        ready = np.array([ticket.ready for ticket in tickets])
        left = due - state.now
        slack = _slack(left, at_level[0], alone, state)
        lost = slack[:, 0] < 0
        lost[ready.argmax()] = False  # it starts now, whatever runs elsewhere
        if lost.any():
            at_level[0, lost] = 0.0
            slack = _slack(left, at_level[0], alone, state)
            slack[lost] = inf
        return _Line(
            tickets=tickets,
            profiles=profiles,
            table=table,
            ready=ready,
            due=due,
            allowed=allowed,
            startable=allowed & ready[:, None],
            lost=lost,
            at_level=at_level,
            alone=alone,
            slack=slack,
        )


def _levels(rows: Flags, table: _Table, quickest: NDArray[np.intp]) -> NDArray[np.intp]:
    """`[kinds, Q]` The most accurate profile of each kind that is no slower than each level, or its quickest."""
    levels = np.array(sorted(set(table.share.tolist())))
    fits = rows[:, None, :] & (table.share <= levels[:, None])
    return np.where(fits.any(axis=2), fits.argmax(axis=2), quickest[:, None])


def _slack(left: Floats, share: Floats, alone: Floats, state: QueueState[P, W]) -> Floats:
    latest = left[:, None] - alone
    ahead = _taken_by_busy(latest, state) + share.cumsum(axis=0) - share
    slack: Floats = latest - ahead / (state.free + len(state.busy))
    return slack


def _taken_by_busy(until: Floats, state: QueueState[P, W]) -> Floats | int:
    """Seconds that the busy workers do not have until then: all of them at most, a batch may hang."""
    ahead = np.maximum(until, 0.0)
    return sum(np.minimum(busy, ahead) for busy in state.busy)


@dataclass(frozen=True)
class _Options:
    """What could be started: the quickest for an image first."""

    profile: NDArray[np.intp]
    size: NDArray[np.intp]
    seconds: Floats
    members: NDArray[np.intp]
    """`[largest size, P]` The places of the first that may start with each profile; behind them, any."""

    def of_all(self, values: NDArray[N]) -> NDArray[N]:
        """`values` `[..., largest size, P]` tell of batches of every size; these are of the options."""
        found: NDArray[N] = values[..., self.size - 1, self.profile]
        return found


def _options(line: _Line, state: QueueState[P, W]) -> _Options:
    allowed = line.allowed[line.ready.argmax()].tolist()
    # No worker is to idle while another takes all.
    available = (-(-line.startable.sum(axis=0) // state.free)).tolist()
    found = sorted(
        (each, column, size, seconds)
        for column, profile in enumerate(line.profiles)
        if allowed[column]
        for each, size, seconds in state.costs[profile].batches
        if size <= available[column]
    )
    _, profile, size, seconds = (np.array(column) for column in zip(*found, strict=True))
    members = np.argsort(~line.startable, axis=0, kind="stable")[: size.max()]
    return _Options(profile, size, seconds, members)


def _best(line: _Line, options: _Options, state: QueueState[P, W]) -> int:
    """The option that leaves nobody late and gives the highest accuracy, else the one that drains the queue soonest."""
    seconds = options.seconds * _caution(line, options, state)
    # A batch is in time for its own if it ends before the first of them is due.
    own_due = np.minimum.accumulate(np.where(line.lost, inf, line.due)[options.members])
    own = state.now + seconds <= options.of_all(own_due)
    rest = _rest(line, options, seconds, state)
    spare = _spare(line, options, seconds, state, rest)
    value = np.where(own[:, None] & (spare >= 0), _value(line, options, spare, rest), -inf)
    if value.max() > -inf:
        return int((value.max(axis=1) >= value.max() - SAME_ACCURACY).argmax())  # of equals the quickest
    return int(own.argmax()) if own.any() else int(options.seconds.argmin())


def _caution(line: _Line, options: _Options, state: QueueState[P, W]) -> Floats:
    """`[options]` By what to multiply the seconds of each."""
    return np.where(line.table.accuracy[options.profile] > state.last_accuracy, 1 + HYSTERESIS, 1.0)


@dataclass(frozen=True)
class _Rest:
    """What each option leaves to be done at each level, requests that arrive during the batch included."""

    count: Floats
    """`[options, 1]`"""
    work: Floats
    """`[options, Q]` In seconds of a worker."""
    accuracy: Floats
    """`[options, Q]` The sum."""
    taken: Floats
    """`[options, Q]` The work of the members, were they served at this level."""


def _rest(line: _Line, options: _Options, seconds: Floats, state: QueueState[P, W]) -> _Rest:
    count = len(line.tickets)
    taken = line.at_level.take(options.members, axis=1).cumsum(axis=1)[:, options.size - 1, options.profile]
    arriving = (state.rate * seconds)[:, None]
    more = 1 + arriving / count  # they want what those want that wait
    work, accuracy = more * line.at_level.sum(axis=1)[:, None] - taken
    return _Rest(count * more - options.size[:, None], work, accuracy, taken[0])


def _spare(line: _Line, options: _Options, seconds: Floats, state: QueueState[P, W], rest: _Rest) -> Floats:
    """`[options, Q]` Seconds of a worker that are to spare if the rest is served at this level; below 0: too late."""
    workers = state.free + len(state.busy)
    batch = seconds[:, None]
    last = options.of_all(options.members)
    # Those behind the last member wait for the batch, but no longer for its members; those before it that cannot join
    # are taken to wait for both.
    behind = np.full((len(line.slack) + 1, line.slack.shape[1]), inf)
    np.minimum.accumulate(line.slack[::-1], out=behind[-2::-1])
    spare: Floats = behind[last + 1] * workers - (batch - rest.taken)
    end = last.max() + 1
    if not line.startable[:end].all():
        passed = np.minimum.accumulate(np.where(line.startable[:end, :, None], inf, line.slack[:end, None, :]))
        spare = np.minimum(spare, passed[last, options.profile] * workers - batch)
    if state.rate > 0:  # the last to arrive does so as the batch ends, and has the usual budget
        latest = batch + state.budget - line.alone.sum(axis=0) / len(line.alone)
        spare = np.minimum(spare, latest * workers - (_taken_by_busy(latest, state) + batch + rest.work))
    return spare


def _value(line: _Line, options: _Options, spare: Floats, rest: _Rest) -> Floats:
    """`[options, Q]` The mean accuracy if what is to spare brings some of the rest to the next level."""
    more_work = rest.work[:, 1:] - rest.work[:, :-1]
    risen = np.minimum(np.maximum(spare[:, :-1] / np.maximum(more_work, TINY), 0.0), 1.0)
    accuracy = rest.accuracy.copy()
    accuracy[:, :-1] += risen * (rest.accuracy[:, 1:] - rest.accuracy[:, :-1])
    batch = (options.size * line.table.accuracy[options.profile])[:, None]
    value: Floats = (batch + accuracy) / (options.size[:, None] + rest.count)
    return value
