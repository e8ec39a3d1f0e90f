"""How long something takes, learned from how long it took."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median

WINDOW = 32
"""Samples kept: enough for a steady median, few enough to follow a change of load."""
MAX_AGE_SECONDS = 30.0

Clock = Callable[[], float]


class Window:
    """The latest measurements.

    Old ones are forgotten. Otherwise one slow spell could raise an estimate above every caller's budget, all requests
    would be refused, and nothing would ever be measured again.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._median: float | None = None

    def add(self, seconds: float) -> None:
        self._samples.append((self._clock(), seconds))
        self._median = None

    def median(self) -> float | None:
        """None when nothing was measured lately."""
        oldest = self._clock() - MAX_AGE_SECONDS
        while self._samples and self._samples[0][0] < oldest:
            self._samples.popleft()
            self._median = None
        if self._median is None and self._samples:
            self._median = median(seconds for _, seconds in self._samples)
        return self._median


class LatencyEstimate:
    """Seconds of a batch of each size: its latest median, or what the baselines and the other sizes tell of it."""

    def __init__(self, baselines: Mapping[int, float], clock: Clock = time.monotonic) -> None:
        """`baselines` has the seconds of each batch size before anything was served, of 1 at least."""
        self._baselines = baselines
        self._windows: dict[int, Window] = defaultdict(partial(Window, clock))

    def observe(self, seconds: float, batch_size: int = 1) -> None:
        self._windows[batch_size].add(seconds)

    def expected(self, batch_size: int = 1) -> float:
        """Seconds for a whole batch. A size never measured, not even before, is taken to gain nothing from batching."""
        seconds = self._windows[batch_size].median()
        return self._baseline(batch_size) * self._slowdown() if seconds is None else seconds

    def _baseline(self, batch_size: int) -> float:
        return self._baselines.get(batch_size, batch_size * self._baselines[1])

    def _slowdown(self) -> float:
        """By how much batches lately took longer than their baselines: the load of the machine concerns every size."""
        latest = [(size, window.median()) for size, window in self._windows.items()]
        return median([seconds / self._baseline(size) for size, seconds in latest if seconds is not None] or [1.0])


class DecodeEstimate:
    """Seconds to decode an image, learned for each power of two of its encoded bytes.

    Not seconds per byte: what every image costs, however small, would make large ones look hopeless.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._windows: dict[int, Window] = defaultdict(partial(Window, clock))

    def observe(self, seconds: float, size: int) -> None:
        self._windows[size.bit_length()].add(seconds)

    def expected(self, size: int) -> float:
        """0 when nothing of this magnitude was decoded lately: the benefit of the doubt."""
        return self._windows[size.bit_length()].median() or 0.0
