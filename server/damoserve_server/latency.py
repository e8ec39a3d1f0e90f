"""How long something takes, learned from how long it took."""

import time
from collections import defaultdict, deque
from collections.abc import Callable
from statistics import median

WINDOW = 32
"""Samples kept for each batch size: enough for a steady median, few enough to follow a change of load."""
MAX_AGE_SECONDS = 30.0


class LatencyEstimate:
    """Median of the latest measurements, one window for each batch size.

    Old samples are forgotten and the estimate returns to its baseline. Otherwise one slow spell could raise it above
    every caller's budget, all requests would be refused, and nothing would ever be measured again.
    """

    def __init__(self, baseline: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._baseline = baseline
        self._clock = clock
        self._windows: dict[int, deque[tuple[float, float]]] = defaultdict(lambda: deque(maxlen=WINDOW))

    def observe(self, seconds: float, batch_size: int = 1) -> None:
        self._windows[batch_size].append((self._clock(), seconds))

    def expected(self, batch_size: int = 1) -> float:
        """Seconds for a whole batch. A size that was not seen lately is taken to gain nothing from batching."""
        window = self._windows[batch_size]
        oldest = self._clock() - MAX_AGE_SECONDS
        while window and window[0][0] < oldest:
            window.popleft()
        if window:
            return median(seconds for _, seconds in window)
        return self._baseline if batch_size == 1 else batch_size * self.expected()
