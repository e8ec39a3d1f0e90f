"""Clocks that stand until a test moves them."""

import itertools
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Tells the time that was last set, in seconds."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class TickingClock:
    """Tells a second more at every reading. Threads may share it."""

    _readings: "itertools.count[int]" = field(default_factory=itertools.count)

    def __call__(self) -> float:
        return float(next(self._readings))
