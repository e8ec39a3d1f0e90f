"""What to compute next. A policy is a pure object: it is told the state and says what to start; it has no clock.

So the same code decides in the server, in the tests with a clock of their own, and in the simulator. `deadline` is the
server's; `baselines` has those that it is compared with.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Generic, Protocol, TypeVar

LOWEST_PRIORITY = 5
"""Priorities are 1, the most urgent, to 5, the default. Who can wait says so by a long budget."""
URGENCY_STEP = 1 / (LOWEST_PRIORITY + 1)
"""So many times its priority is the share of its time that a request claims to have; never all of it."""

WORTHWHILE = 0.95
"""A larger batch has to need at most so much of a smaller one's time for each image: noise must not form batches."""

P = TypeVar("P", bound=Hashable)


@dataclass(frozen=True)
class Cost:
    """What a profile gives, and what it takes: `seconds` of a batch of 1, 2, ... images, cautiously estimated."""

    accuracy: float
    seconds: tuple[float, ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes worth forming: 1, and each that is quicker for every image than all smaller ones."""
        sizes, best = [1], self.seconds[0]
        for size, seconds in enumerate(self.seconds[1:], 2):
            if seconds / size <= WORTHWHILE * best:
                sizes.append(size)
                best = seconds / size
        return tuple(sizes)

    @cached_property
    def batches(self) -> tuple[tuple[float, int, float], ...]:
        """Of each size worth forming: the seconds for each image, the size, and the seconds of all."""
        return tuple((self.expected(size) / size, size, self.expected(size)) for size in self.sizes)

    @cached_property
    def share(self) -> float:
        """Seconds for each image in the best batch."""
        size = self.sizes[-1]
        return self.seconds[size - 1] / size

    def expected(self, batch_size: int) -> float:
        return self.seconds[batch_size - 1]


@dataclass(frozen=True)
class Requirements(Generic[P]):
    """What a request allows; times are on the clock of the server."""

    allowed: tuple[P, ...]
    """Never empty; the most accurate first."""
    deadline: float
    """Hard: no answer is wanted after it."""
    due: float
    """When the answer is hoped for: the tier's objective; the deadline of a request without a tier."""
    arrival: float
    priority: int = LOWEST_PRIORITY


class Waiting(Protocol[P]):
    """A request in the queue."""

    @property
    def requirements(self) -> Requirements[P]: ...

    @property
    def ready_at(self) -> float:
        """When its image is, or is expected to be, decoded."""

    @property
    def ready(self) -> bool:
        """Whether it may start; its image may still be on the way."""


W = TypeVar("W", bound=Waiting)  # type: ignore[type-arg]


@dataclass(frozen=True)
class QueueState(Generic[P, W]):
    """What is known at the moment when a worker is free."""

    now: float
    waiting: Sequence[W]
    """In the order of arrival; all have time left."""
    costs: Mapping[P, Cost]
    free: int = 1
    """Workers without a batch, 1 at least."""
    busy: tuple[float, ...] = ()
    """Seconds until each of the other workers is expected to be free."""
    rate: float = 0.0
    """Recent arrivals a second."""
    budget: float = 0.0
    """Seconds that recent requests had, until they were due."""
    last_accuracy: float = inf
    """Of the profile that was started last."""


@dataclass(frozen=True)
class Start(Generic[P, W]):
    """Compute these now, with this profile, which all of them allow."""

    profile: P
    tickets: tuple[W, ...]


@dataclass(frozen=True)
class Pause:
    """Start nothing before `until`, unless something changes."""

    until: float


Decision = Start[P, W] | Pause | None
"""None: nothing can start."""


class Policy(Protocol):
    """Decides."""

    def decide(self, state: QueueState[P, W]) -> Decision[P, W]: ...


def urgency(requirements: Requirements[P], now: float, quickest: float) -> float:
    """Where a request stands in the queue, the smallest first: when it is due, or if that is past hope, its deadline.

    `quickest` is in how many seconds it can be answered. Whoever can no longer be in time must not make others late.
    Priorities bring this moment nearer. It is never before the arrival, so all that come after it stand behind it, and
    it is before the deadline, so there is time left then. That is the ageing: no crowd of any priority starves others.
    """
    due = requirements.deadline if now + quickest > requirements.due else requirements.due
    return requirements.arrival + requirements.priority * URGENCY_STEP * (due - requirements.arrival)
