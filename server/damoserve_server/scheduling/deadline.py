"""The server's policy: the most accurate answer that is still in time.

Requests wait in the order in which they are due, bound to no profile. Each time a worker is free, `DeadlinePolicy`
answers one question: which profile, and how many of those that wait, start now? It does so in five steps.

1. **Rank.** The queue is put in the order of urgency (`urgency`).
2. **Speed levels.** A level is a limit on the seconds that one image may take. There is one for the time of each
   profile, and the quickest comes first. At a level every request has the most accurate of its profiles within the
   limit, or else its quickest. So a level is a plan for the whole queue, in one number.
3. **Slack.** If all are served in this order at one level, a request starts when the work of those ahead of it is done,
   shared evenly by the workers. Its slack is its latest start, which is when it is due less the time of its own
   inference, minus that start. A request without slack at the quickest level is late whatever is done: it no longer
   holds back the others. One that cannot be in time even if it started now keeps only its quickest profile.
4. **Options.** Every profile and batch size for the most urgent request that is ready is paired with every level at
   which the rest could follow. The spare time of a pair is the least slack of the rest, less what the batch takes
   longer than the level had counted on for its members. Requests that will arrive meanwhile, at the recent rate, count
   as part of the rest. Below zero somebody is late, and the pair is out. Otherwise the spare time moves some of the
   rest to the next level, and the value of the pair is the mean accuracy of the batch and the rest.
5. **Choice.** The option with the highest value starts; of equals the quickest. If every option leaves somebody late,
   the quickest for an image starts that is in time for its own requests, since that drains the queue soonest, and if
   none is, the shortest batch. A worker may still be held for a moment if a larger batch would gain more time than the
   wait costs (`_hold_until`).

An example: one worker, two profiles, three requests that are due in 100, 140 and 160 ms. The tests run these lines.

    >>> from damoserve_server.scheduling.policy import Cost, Requirements
    >>> from damoserve_server.scheduling.scheduler import Ticket
    >>> costs = {"accurate": Cost(0.62, (0.060,)), "quick": Cost(0.59, (0.020,))}
    >>> def waiting(*due):
    ...     requests = (Requirements(("accurate", "quick"), deadline=1.0, due=at, arrival=0.0) for at in due)
    ...     return [Ticket(requirements, ready_at=0.0, ready=True) for requirements in requests]
    >>> state = QueueState(now=0.0, waiting=waiting(0.100, 0.140, 0.160), costs=costs)

One row for each request, and two levels, 20 and 60 ms. At the level of 20 ms the second request starts after one image,
at 20 ms, and could start as late as 120 ms: a slack of 100 ms. At the level of 60 ms the third is 20 ms late.

    >>> queue = rank(state)
    >>> (1000 * queue.slack).round().tolist()
    [[80.0, 40.0], [100.0, 20.0], [100.0, -20.0]]

Two options, the quickest first. To start `quick` is what the slack at 20 ms has counted on, so 100 ms are to spare;
`accurate` takes 40 ms more of it. With the rest at 60 ms, `quick` leaves 20 ms, and `accurate` makes the third late.

    >>> options = _options(queue, state)
    >>> rest = _remaining_work(queue, options, options.seconds, state)
    >>> spare = _spare_seconds(queue, options, options.seconds, state, rest)
    >>> (1000 * spare).round().tolist()
    [[100.0, 20.0], [60.0, -20.0]]

To move the other two requests from 20 to 60 ms takes 80 ms. After `quick` there is time for both: 0.59, 0.62 and 0.62.
After `accurate` there is time for three quarters of it: 0.62, and 0.6125 twice. That is the better mean, and it starts.

    >>> _mean_accuracy(queue, options, spare, rest).round(4).tolist()
    [[0.61, 0.61], [0.615, 0.62]]
    >>> DeadlinePolicy(max_wait=0.005).decide(state).profile
    'accurate'

The value of the last pair does not count, as it leaves somebody late. With five requests that are all due in 110 ms the
last has 10 ms to spare at the quickest level; `accurate` would need 40, so `quick` starts.

    >>> DeadlinePolicy(max_wait=0.005).decide(QueueState(0.0, waiting(*[0.110] * 5), costs)).profile
    'quick'

A worker is held where that gains time. Here two images in one batch take 24 ms instead of twice 20, and the second will
be decoded in 3 ms:

    >>> pair = [Ticket(Requirements(("quick",), 1.0, 0.1, 0.0), at, ready=at == 0.0) for at in (0.0, 0.003)]
    >>> DeadlinePolicy(max_wait=0.005).decide(QueueState(0.0, pair, {"quick": Cost(0.59, (0.020, 0.024))}))
    Pause(until=0.003)

The model is exact for one worker; for several it forgets that an image cannot be divided among them. In the shapes
below P are profiles and Q speed levels.
"""

from dataclasses import dataclass
from math import inf
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from damoserve_server.scheduling.policy import Decision, P, Pause, QueueState, Start, W, urgency
from damoserve_server.scheduling.ranking import Floats, RankedQueue, busy_seconds, rank

HYSTERESIS = 0.1
"""Share by which a batch of a more accurate profile than the last one is taken to be longer: it has to be in time even
then, or the profiles would alternate at every small change of the queue."""

UNANNOUNCED_HOLD_SHARE = 0.04
"""Share of its own seconds that a batch is held for requests that nothing announces, where a larger batch would gain
time: the first request of a burst comes alone, and on a slow engine takes the place of a full batch."""
SAME_ACCURACY = 1e-6
"""Difference of two mean accuracies up to which the options are equal, and the quickest is taken."""
SMALLEST_WORK = 1e-9
"""Seconds that a division by an amount of work takes for the least one, instead of zero."""
NEGLIGIBLE_HOLD = 1e-6
"""Seconds that are not worth a pause, which would be over before it began."""

N = TypeVar("N", bound=np.generic)


class DeadlinePolicy:
    """The policy that this module describes: most accurate in time, for all that wait."""

    def __init__(self, max_wait: float) -> None:
        """Bounds by `max_wait`, in seconds, how long a free worker is held for a larger batch."""
        self._max_wait = max_wait

    def decide(self, state: QueueState[P, W]) -> Decision[P, W]:
        """Returns what to start now, or until when to hold the worker; None where no request is ready."""
        if not any(ticket.ready for ticket in state.waiting):
            return None
        if len(state.costs) == 1 and max(cost.sizes[-1] for cost in state.costs.values()) == 1:
            return _start_most_urgent(state)
        queue = rank(state)
        options = _options(queue, state)
        best = _best_option(queue, options, state)
        column = int(options.profile[best])
        members = options.members[: options.size[best], column]
        until = self._hold_until(queue, state, column, members)
        if until is not None:
            return Pause(until)
        return Start(queue.profiles[column], tuple(queue.tickets[index] for index in members))

    def _hold_until(
        self, queue: RankedQueue, state: QueueState[P, W], column: int, members: NDArray[np.intp]
    ) -> float | None:
        """Returns until when to hold a chosen batch for a larger one, if that gains time and makes nobody late.

        The gain is what two batches, these members and those that are missing, take longer than one of all of them. It
        is compared with the time to fill the batch: until the missing images are decoded, or have arrived at the recent
        rate. Where that is too long, the batch is held for a small share of its own time all the same. A wait counts
        from the moment at which the first member was ready, so decisions that follow one another do not add up.
        """
        cost, size = state.costs[queue.profiles[column]], len(members)
        larger = next((other for other in cost.sizes if other > size), None)
        if larger is None or state.free > 1:  # another free worker serves whoever comes
            return None
        missing = larger - size
        already_held = state.now - min(queue.tickets[index].ready_at for index in members)
        decoding = np.flatnonzero(queue.allowed[:, column] & ~queue.ready)
        ready_at = sorted(queue.tickets[index].ready_at for index in decoding)[:missing]
        until_full = missing / state.rate if state.rate else inf
        if len(ready_at) == missing:
            until_full = min(until_full, max(ready_at[-1] - state.now, 0.0))
        gain = cost.expected(size) + cost.expected(missing) - cost.expected(larger)
        if until_full < gain:
            remaining_hold = self._max_wait - already_held
            hold = min(max(until_full, gain / 8), remaining_hold)  # arrivals are not regular
        else:
            remaining_hold = min(self._max_wait, UNANNOUNCED_HOLD_SHARE * cost.expected(size)) - already_held
            hold = remaining_hold
        # The larger batch has to be in time for its members, and for the queue behind it at the quickest level.
        spare = min(float(queue.due[members].min()) - state.now, float(queue.slack[:, 0].min()) + cost.expected(size))
        if remaining_hold <= NEGLIGIBLE_HOLD or hold >= spare - cost.expected(larger):
            return None
        return state.now + float(hold)


def _start_most_urgent(state: QueueState[P, W]) -> Start[P, W]:
    """Starts the most urgent request that is ready, where there is neither a profile nor a batch size to choose."""
    [(profile, cost)] = state.costs.items()
    ready = (ticket for ticket in state.waiting if ticket.ready)
    return Start(profile, (min(ready, key=lambda ticket: urgency(ticket.requirements, state.now, cost.seconds[0])),))


@dataclass(frozen=True)
class _Options:
    """The batches that could be started now, by the seconds for an image, the quickest first."""

    profile: NDArray[np.intp]
    """Index of the profile; `[options]`."""
    size: NDArray[np.intp]
    """Images in the batch; `[options]`."""
    seconds: Floats
    """Seconds of the whole batch; `[options]`."""
    members: NDArray[np.intp]
    """Places in the queue of the first that may start with each profile; behind these any; `[largest size, P]`."""

    def pick(self, by_size: NDArray[N]) -> NDArray[N]:
        """Returns the values of the options, out of those for every size and profile, `[..., largest size, P]`."""
        values: NDArray[N] = by_size[..., self.size - 1, self.profile]
        return values


def _options(queue: RankedQueue, state: QueueState[P, W]) -> _Options:
    """Lists the worthwhile batches that the first ready request can be in."""
    allowed = queue.allowed[queue.ready.argmax()].tolist()
    # The free workers share those that may start: none is to idle while another takes all.
    available = (-(-queue.startable.sum(axis=0) // state.free)).tolist()
    batches = sorted(
        (seconds_per_image, column, size, seconds)
        for column, profile in enumerate(queue.profiles)
        if allowed[column]
        for seconds_per_image, size, seconds in state.costs[profile].batches
        if size <= available[column]
    )
    _, profile, size, seconds = (np.array(values) for values in zip(*batches, strict=True))
    members = np.argsort(~queue.startable, axis=0, kind="stable")[: size.max()]
    return _Options(profile, size, seconds, members)


def _best_option(queue: RankedQueue, options: _Options, state: QueueState[P, W]) -> int:
    """Returns the option that leaves nobody late at the highest mean accuracy, or else drains the queue soonest."""
    seconds = options.seconds * _hysteresis(queue, options, state)
    # A batch is in time for its members if it ends before the first of them is due.
    members_due = np.minimum.accumulate(np.where(queue.certainly_late, inf, queue.due)[options.members])
    in_time = state.now + seconds <= options.pick(members_due)
    rest = _remaining_work(queue, options, seconds, state)
    spare = _spare_seconds(queue, options, seconds, state, rest)
    value = np.where(in_time[:, None] & (spare >= 0), _mean_accuracy(queue, options, spare, rest), -inf)
    if value.max() > -inf:
        return int((value.max(axis=1) >= value.max() - SAME_ACCURACY).argmax())  # of equals the quickest
    return int(in_time.argmax()) if in_time.any() else int(options.seconds.argmin())


def _hysteresis(queue: RankedQueue, options: _Options, state: QueueState[P, W]) -> Floats:
    """Returns the factor on the seconds of each option: more than 1 for a profile more accurate than the last one."""
    return np.where(queue.table.accuracy[options.profile] > state.last_accuracy, 1 + HYSTERESIS, 1.0)


@dataclass(frozen=True)
class _RemainingWork:
    """The work that each option leaves, at each level; requests that arrive during the batch are part of it."""

    requests: Floats
    """Number of requests, seldom a whole one; `[options, 1]`."""
    work: Floats
    """Seconds of a worker; `[options, Q]`."""
    accuracy: Floats
    """Sum of the accuracies; `[options, Q]`."""
    members_work: Floats
    """Seconds that the members of the batch would take at this level, as the slack has it; `[options, Q]`."""


def _remaining_work(queue: RankedQueue, options: _Options, seconds: Floats, state: QueueState[P, W]) -> _RemainingWork:
    count = len(queue.tickets)
    by_size = queue.work_and_accuracy.take(options.members, axis=1).cumsum(axis=1)  # [2, largest size, P, Q]
    of_members = by_size[:, options.size - 1, options.profile]
    arrivals = (state.rate * seconds)[:, None]
    growth = 1 + arrivals / count  # those to come are taken to be like those that wait
    work, accuracy = growth * queue.work_and_accuracy.sum(axis=1)[:, None] - of_members
    return _RemainingWork(count * growth - options.size[:, None], work, accuracy, of_members[0])


def _spare_seconds(
    queue: RankedQueue, options: _Options, seconds: Floats, state: QueueState[P, W], rest: _RemainingWork
) -> Floats:
    """Returns the seconds of a worker that are left over if the rest follows at this level; `[options, Q]`.

    Below zero somebody is late. It is the least of up to three amounts, each of a group of requests.
    """
    workers = state.free + len(state.busy)
    batch = seconds[:, None]
    last_member = options.pick(options.members)
    # Those behind the last member: their slack counts on the work of the members at this level, and these now take the
    # seconds of the batch instead. `least_behind[i]` is the least slack of request i and all behind it.
    least_behind = np.full((len(queue.slack) + 1, queue.slack.shape[1]), inf)
    np.minimum.accumulate(queue.slack[::-1], out=least_behind[-2::-1])
    spare: Floats = least_behind[last_member + 1] * workers - (batch - rest.members_work)
    # Those before it that cannot be members, as they are not ready or do not allow the profile: they wait for the
    # batch, and for simplicity also for the members that their slack may count ahead of them.
    end = last_member.max() + 1
    if not queue.startable[:end].all():
        passed_over = np.where(queue.startable[:end, :, None], inf, queue.slack[:end, None, :])
        least_passed_over = np.minimum.accumulate(passed_over)
        spare = np.minimum(spare, least_passed_over[last_member, options.profile] * workers - batch)
    # Those that arrive during the batch: the last does so as it ends, has the usual budget, and is served after all.
    if state.rate > 0:
        latest_start = batch + state.budget - queue.single_seconds.sum(axis=0) / len(queue.single_seconds)
        work_ahead = busy_seconds(latest_start, state) + batch + rest.work
        spare = np.minimum(spare, latest_start * workers - work_ahead)
    return spare


def _mean_accuracy(queue: RankedQueue, options: _Options, spare: Floats, rest: _RemainingWork) -> Floats:
    """Returns the mean accuracy if the spare time moves some of the rest to the next level; `[options, Q]`."""
    more_work = rest.work[:, 1:] - rest.work[:, :-1]
    moved = np.minimum(np.maximum(spare[:, :-1] / np.maximum(more_work, SMALLEST_WORK), 0.0), 1.0)
    accuracy = rest.accuracy.copy()
    accuracy[:, :-1] += moved * (rest.accuracy[:, 1:] - rest.accuracy[:, :-1])
    of_batch = (options.size * queue.table.accuracy[options.profile])[:, None]
    mean: Floats = (of_batch + accuracy) / (options.size[:, None] + rest.requests)
    return mean
