"""Latency tiers, and the profiles that are accurate enough for a request.

Which of these serves is decided later, by the policy, when a worker is free.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol, TypeVar

import numpy as np

from damoserve_server.errors import AccuracyUnavailable


class Tier(StrEnum):
    """A latency tier: an objective and a floor of accuracy, both set by the operator."""

    REALTIME = "realtime"
    BALANCED = "balanced"
    ACCURATE = "accurate"


class Reason(StrEnum):
    """The reason why a profile served, as callers and metrics are told it."""

    REQUESTED = "requested"
    MOST_ACCURATE_IN_TIME = "most_accurate_in_time"
    QUICKEST = "quickest"


class Rated(Protocol):
    """A profile with its average precision, 0 to 1."""

    @property
    def accuracy(self) -> float: ...


R = TypeVar("R", bound=Rated)


def accurate_enough(profiles: Sequence[R], least: float) -> tuple[R, ...]:
    """Returns the profiles of at least this accuracy, in their order; never empty. Raises AccuracyUnavailable."""
    if not least:
        return tuple(profiles)
    # In single precision, as callers send it: 0.6 arrives as 0.60000002, and a profile that has 0.6 is to fit.
    accurate = tuple(profile for profile in profiles if np.float32(profile.accuracy) >= np.float32(least))
    if not accurate:
        best = max(profile.accuracy for profile in profiles)
        message = f"no profile reaches an average precision of {least:g}; the best has {best:.4f}"
        raise AccuracyUnavailable(message, min_accuracy=f"{least:g}", best_accuracy=f"{best:.4f}")
    return accurate
