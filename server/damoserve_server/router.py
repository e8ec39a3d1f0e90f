"""Which profile serves a request: a pure function of what is loaded, what is expected and what was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

import numpy as np

from damoserve_server.errors import AccuracyUnavailable, DeadlineUnreachable


class Tier(StrEnum):
    """A latency tier."""

    REALTIME = "realtime"
    BALANCED = "balanced"
    ACCURATE = "accurate"


class Reason(StrEnum):
    """Why a profile was chosen."""

    REQUESTED = "requested"
    MOST_ACCURATE_IN_TIME = "most_accurate_in_time"
    QUICKEST = "quickest"


P = TypeVar("P")


@dataclass(frozen=True)
class Candidate(Generic[P]):
    """A loaded profile: its average precision and the seconds in which it is expected to answer, waiting included."""

    profile: P
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class Wish:
    """What a request allows. Times are seconds from now."""

    budget: float
    """Hard: no answer is wanted after it."""
    objective: float | None = None
    """Of the tier; may be missed. None when the request names its profile."""
    min_accuracy: float = 0.0


@dataclass(frozen=True)
class Choice(Generic[P]):
    """The profile that serves, and why."""

    profile: P
    reason: Reason


def choose(candidates: Sequence[Candidate[P]], wish: Wish) -> Choice[P]:
    """The most accurate candidate within the objective; failing that, the quickest within the budget.

    `candidates` is not empty; with a named profile it holds only that one. Of equally accurate ones the quicker wins.
    Raises AccuracyUnavailable or DeadlineUnreachable.
    """
    # In single precision, as callers send it: 0.6 arrives as 0.60000002, and a profile that has 0.6 is to fit.
    least = np.float32(wish.min_accuracy)
    accurate = [candidate for candidate in candidates if np.float32(candidate.accuracy) >= least]
    if not accurate:
        best = max(candidate.accuracy for candidate in candidates)
        message = f"no profile reaches an average precision of {wish.min_accuracy:g}; the best has {best:.4f}"
        raise AccuracyUnavailable(message, min_accuracy=f"{wish.min_accuracy:g}", best_accuracy=f"{best:.4f}")
    quickest = min(accurate, key=lambda candidate: candidate.seconds)
    if quickest.seconds > wish.budget:
        raise DeadlineUnreachable(quickest.seconds, wish.budget)
    if wish.objective is None:
        return Choice(quickest.profile, Reason.REQUESTED)
    limit = min(wish.objective, wish.budget)
    in_time = [candidate for candidate in accurate if candidate.seconds <= limit]
    if not in_time:
        return Choice(quickest.profile, Reason.QUICKEST)
    best_in_time = max(in_time, key=lambda candidate: (candidate.accuracy, -candidate.seconds))
    return Choice(best_in_time.profile, Reason.MOST_ACCURATE_IN_TIME)
