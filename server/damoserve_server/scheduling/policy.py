"""The interface of a policy, which decides what is computed next: it is given the state, and returns what to start.

It has no clock of its own, so the same code decides in the server, in the tests and in the simulator. The server's
policy is in `deadline`; `baselines` has those that it is compared with.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Generic, Protocol, TypeVar

LOWEST_PRIORITY = 5
"""Largest priority, and the default; 1 is the most urgent. Who can wait says so by a long budget."""
URGENCY_STEP = 1 / (LOWEST_PRIORITY + 1)
"""Share of its time that a request claims to have, for each step of its priority; at the lowest still not all."""

WORTHWHILE = 0.95
"""Share of a smaller batch's seconds for an image that a larger one may need at most: noise must not form batches."""

P = TypeVar("P", bound=Hashable)


@dataclass(frozen=True)
class Cost:
    """The accuracy of a profile, and the time that it takes."""

    accuracy: float
    """Average precision, 0 to 1."""
    seconds: tuple[float, ...]
    """Seconds of a batch of 1, 2, ... images, cautiously estimated."""

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
        """Seconds for each image, size and seconds of the whole batch, for every size worth forming."""
        return tuple((self.expected(size) / size, size, self.expected(size)) for size in self.sizes)

    @cached_property
    def seconds_per_image(self) -> float:
        """Seconds for each image in the best batch: the work that one image is."""
        size = self.sizes[-1]
        return self.seconds[size - 1] / size

    def expected(self, batch_size: int) -> float:
        """Returns the seconds of a whole batch."""
        return self.seconds[batch_size - 1]


@dataclass(frozen=True)
class Requirements(Generic[P]):
    """The profiles that a request allows, and its times on the clock of the server."""

    allowed: tuple[P, ...]
    """Profiles that may serve it, the most accurate first; never empty."""
    deadline: float
    """Time after which no answer is of use: a hard limit."""
    due: float
    """Time by which the answer is hoped for: the tier's objective, or the deadline of a request without a tier."""
    arrival: float
    """Time at which the request came."""
    priority: int = LOWEST_PRIORITY


class Waiting(Protocol[P]):
    """A request in the queue."""

    @property
    def requirements(self) -> Requirements[P]: ...

    @property
    def ready_at(self) -> float:
        """Time at which its image was decoded, or is expected to be."""

    @property
    def ready(self) -> bool:
        """True once it may start; until then its image is being decoded."""


W = TypeVar("W", bound=Waiting)  # type: ignore[type-arg]


@dataclass(frozen=True)
class QueueState(Generic[P, W]):
    """All that a policy is told, at a moment when a worker is free."""

    now: float
    waiting: Sequence[W]
    """Requests that wait, in the order of arrival; all have time left."""
    costs: Mapping[P, Cost]
    """Cost of every profile that one of these requests allows."""
    free: int = 1
    """Workers without a batch, 1 at least."""
    busy: tuple[float, ...] = ()
    """Seconds until each of the other workers is expected to be free."""
    rate: float = 0.0
    """Recent arrivals a second."""
    budget: float = 0.0
    """Mean seconds that recent requests had until they were due."""
    last_accuracy: float = inf
    """Accuracy of the profile that was started last; infinite before the first."""


@dataclass(frozen=True)
class Start(Generic[P, W]):
    """Decision to compute these requests now, by a profile that all of them allow."""

    profile: P
    tickets: tuple[W, ...]


@dataclass(frozen=True)
class Pause:
    """Decision to start nothing before `until`, unless something changes."""

    until: float


Decision = Start[P, W] | Pause | None
"""Answer of a policy; None where nothing can start."""


class Policy(Protocol):
    """Chooses what is computed next."""

    def decide(self, state: QueueState[P, W]) -> Decision[P, W]:
        """Returns the batch to start now, or a pause; depends on nothing but the state and earlier decisions."""


def urgency(requirements: Requirements[P], now: float, quickest: float) -> float:
    """Returns the moment by which the queue is ordered, the earliest first, in place of when a request is due.

    A request that can no longer be answered by then, as its `quickest` profile takes too many seconds, is taken by its
    deadline instead: it must not make others late. Priorities bring the moment nearer. It is never before the arrival,
    so all that come after it stand behind it, and it is before the deadline, so there is time left then. That is the
    ageing: no crowd of any priority starves others.
    """
    due = requirements.deadline if now + quickest > requirements.due else requirements.due
    return requirements.arrival + requirements.priority * URGENCY_STEP * (due - requirements.arrival)
