"""The queue in the order of urgency, and how much time it leaves: steps 1 to 3 of the policy in `deadline`.

In the shapes below n are requests, P profiles and Q speed levels. A speed level is a limit on the seconds that one
image may take: at a level, every request has its most accurate profile within that limit, or else its quickest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from damoserve_server.scheduling.policy import URGENCY_STEP, Cost, P, QueueState, Requirements, W

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class ProfileTable:
    """The work and the accuracy of each profile, the most accurate first."""

    work_and_accuracy: Floats
    """Seconds of a worker for one image in the best batch, and average precision; `[2, P]`."""
    single_seconds: Floats
    """Seconds of a batch of one image; `[P]`."""

    @classmethod
    def of(cls, costs: Sequence[Cost]) -> "ProfileTable":
        """Reads the table out of the costs."""
        return cls(
            np.array([[cost.seconds_per_image for cost in costs], [cost.accuracy for cost in costs]]),
            np.array([cost.seconds[0] for cost in costs]),
        )

    @property
    def work(self) -> Floats:
        work: Floats = self.work_and_accuracy[0]
        return work

    @property
    def accuracy(self) -> Floats:
        accuracy: Floats = self.work_and_accuracy[1]
        return accuracy


@dataclass(frozen=True)
class RankedQueue:
    """The requests that wait, the most urgent first, and what they need at each speed level, the quickest first."""

    tickets: list[Any]
    profiles: tuple[Any, ...]
    table: ProfileTable
    ready: Flags
    """Requests whose image is decoded; `[n]`."""
    due: Floats
    """Time at which each request is due, or its deadline where it cannot be in time for that; `[n]`."""
    allowed: Flags
    """Profiles that each request allows; only the quickest of a request that is late whatever is done; `[n, P]`."""
    startable: Flags
    """Profiles with which each request could start at once: it allows them and is ready; `[n, P]`."""
    certainly_late: Flags
    """Requests that are late whatever is done; `[n]`."""
    work_and_accuracy: Floats
    """Seconds of a worker that each request takes at each level, and its accuracy there; `[2, n, Q]`."""
    single_seconds: Floats
    """Seconds from the start of a request to its answer, by itself; `[n, Q]`."""
    slack: Floats
    """Seconds left to each request if all are served in this order; infinite if it is certainly late; `[n, Q]`."""


def rank(state: QueueState[P, W]) -> RankedQueue:
    """Puts the requests that wait in the order of urgency, and computes their slack at every speed level."""
    profiles = tuple(sorted(state.costs, key=lambda profile: -state.costs[profile].accuracy))
    table = ProfileTable.of([state.costs[profile] for profile in profiles])
    requirements = [ticket.requirements for ticket in state.waiting]
    # Many requests allow the same profiles. What follows from these is found once for each kind of request.
    kinds: dict[tuple[P, ...], int] = {}
    kind = np.array([kinds.setdefault(request.allowed, len(kinds)) for request in requirements])
    allowed_by_kind = np.array([[profile in allowed for profile in profiles] for allowed in kinds])
    quickest = np.where(allowed_by_kind, table.single_seconds, inf).argmin(axis=1)
    due, misses_due, order = _order(state.now, requirements, table.single_seconds[quickest][kind])
    kind, misses_due, due = kind[order], misses_due[order], due[order]
    tickets = [state.waiting[index] for index in order]
    allowed = allowed_by_kind.take(kind, axis=0)
    chosen = _profiles_at_levels(allowed_by_kind, table, quickest).take(kind, axis=0)
    if misses_due.any():  # only the quickest profile is left for these
        allowed[misses_due] = np.eye(len(profiles), dtype=bool)[quickest[kind[misses_due]]]
        chosen[misses_due] = quickest[kind[misses_due]][:, None]
    work_and_accuracy = table.work_and_accuracy.take(chosen, axis=1)
    single_seconds = table.single_seconds.take(chosen)
    ready = np.array([ticket.ready for ticket in tickets])
    until_due = due - state.now
    slack = _slack(until_due, work_and_accuracy[0], single_seconds, state)
    certainly_late = slack[:, 0] < 0
    certainly_late[ready.argmax()] = False  # the first that is ready starts now, whatever the model says of the others
    if certainly_late.any():
        work_and_accuracy[0, certainly_late] = 0.0
        slack = _slack(until_due, work_and_accuracy[0], single_seconds, state)
        slack[certainly_late] = inf
    return RankedQueue(
        tickets=tickets,
        profiles=profiles,
        table=table,
        ready=ready,
        due=due,
        allowed=allowed,
        startable=allowed & ready[:, None],
        certainly_late=certainly_late,
        work_and_accuracy=work_and_accuracy,
        single_seconds=single_seconds,
        slack=slack,
    )


def _order(
    now: float, requirements: Sequence[Requirements[P]], quickest: Floats
) -> tuple[Floats, Flags, NDArray[np.intp]]:
    """Returns when each request is due, which of them miss that, and the order of all by `urgency`.

    `quickest` are the seconds that each needs by itself; all have the shape `[n]`.
    """
    deadline = np.array([request.deadline for request in requirements])
    due = np.array([request.due for request in requirements])
    misses_due = now + quickest > due
    due = np.where(misses_due, deadline, due)
    urgency_share = np.array([request.priority for request in requirements]) * URGENCY_STEP
    arrival = np.array([request.arrival for request in requirements])
    return due, misses_due, np.argsort(arrival + urgency_share * (due - arrival), kind="stable")


def _profiles_at_levels(allowed: Flags, table: ProfileTable, quickest: NDArray[np.intp]) -> NDArray[np.intp]:
    """Returns the most accurate allowed profile within the limit of each level, or else the quickest; `[kinds, Q]`.

    `allowed` is `[kinds, P]`, `quickest` is `[kinds]`. Profiles are in the order of accuracy, so the first that fits is
    the most accurate.
    """
    limits = np.array(sorted(set(table.work.tolist())))
    fits = allowed[:, None, :] & (table.work <= limits[:, None])
    return np.where(fits.any(axis=2), fits.argmax(axis=2), quickest[:, None])


def _slack(until_due: Floats, work: Floats, single_seconds: Floats, state: QueueState[P, W]) -> Floats:
    """Returns the seconds left to each request at each level if all are served in this order; `[n, Q]`."""
    latest_start = until_due[:, None] - single_seconds
    work_ahead = busy_seconds(latest_start, state) + work.cumsum(axis=0) - work
    slack: Floats = latest_start - work_ahead / (state.free + len(state.busy))
    return slack


def busy_seconds(until: Floats, state: QueueState[P, W]) -> Floats | int:
    """Returns the seconds that busy workers lack until then: at most all of them, as a batch may hang."""
    limit = np.maximum(until, 0.0)
    return sum(np.minimum(busy, limit) for busy in state.busy)
