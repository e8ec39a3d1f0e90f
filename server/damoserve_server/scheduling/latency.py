"""Estimates that are learned while serving: seconds of a batch and of decoding, and the rate of arrivals."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from functools import partial
from math import ceil, exp
from statistics import median

from damoserve_server.scheduling.policy import Cost

WINDOW = 32
"""Number of samples kept: enough for a steady quantile, few enough to follow a change of load."""
MAX_AGE_SECONDS = 5.0
COST_QUANTILE = 0.8
"""Quantile of the samples that a decision counts on: with the median every second answer would be late.

A higher one is slower to trust a profile, and gains nothing where bursts decide.
"""
MEMORY_SECONDS = 0.2
"""Time in which an arrival loses all but 1/e of its weight: bursts are what a queue has to be ready for."""

Clock = Callable[[], float]


class RecentSamples:
    """The latest measurements, in seconds.

    Old ones are forgotten. Otherwise one slow spell could raise an estimate above every caller's budget, all requests
    would be refused, and nothing would ever be measured again.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._sorted: list[float] | None = None

    def add(self, seconds: float) -> None:
        self._samples.append((self._clock(), seconds))
        self._sorted = None

    def quantile(self, share: float) -> float | None:
        """Returns the seconds that this share of the recent samples took at most; None when there are none."""
        oldest = self._clock() - MAX_AGE_SECONDS
        while self._samples and self._samples[0][0] < oldest:
            self._samples.popleft()
            self._sorted = None
        if self._sorted is None:
            self._sorted = sorted(seconds for _, seconds in self._samples)
        return self._sorted[max(0, ceil(share * len(self._sorted)) - 1)] if self._sorted else None


class LatencyEstimate:
    """Learns the seconds of a batch of each size: measured lately, or inferred from the baselines and other sizes.

    Threads may share it.
    """

    def __init__(self, baselines: Mapping[int, float], clock: Clock = time.monotonic) -> None:
        """Starts from `baselines`: the seconds of each batch size, of 1 at least, before anything was served."""
        self._baselines = baselines
        self._clock = clock
        self._windows = {size: RecentSamples(clock) for size in baselines}
        self._lock = threading.Lock()
        self._cost: Cost | None = None
        self._cost_at = clock()

    def observe(self, seconds: float, batch_size: int = 1) -> None:
        with self._lock:
            self._windows[batch_size].add(seconds)
            self._cost = None

    def expected(self, batch_size: int = 1) -> float:
        """Returns the median, in seconds, for a whole batch."""
        with self._lock:
            return self._quantile(0.5, batch_size)

    def cost(self, accuracy: float) -> Cost:
        """Returns the cost of a profile of this accuracy: a cautious quantile for each batch size."""
        with self._lock:
            if self._cost is None or self._clock() > self._cost_at + 1:  # samples grow old
                seconds = tuple(self._quantile(COST_QUANTILE, size) for size in range(1, len(self._baselines) + 1))
                self._cost = Cost(accuracy, seconds)
                self._cost_at = self._clock()
            return self._cost

    def _quantile(self, share: float, batch_size: int) -> float:
        seconds = self._windows[batch_size].quantile(share)
        return self._baselines[batch_size] * self._slowdown(share) if seconds is None else seconds

    def _slowdown(self, share: float) -> float:
        """Returns how many times their baselines batches lately took: the load of the machine concerns every size."""
        latest = [(size, window.quantile(share)) for size, window in self._windows.items()]
        return median([seconds / self._baselines[size] for size, seconds in latest if seconds is not None] or [1.0])


class DecodeEstimate:
    """Learns the seconds to decode an image, for each power of two of its encoded bytes.

    Not seconds per byte: what every image costs, however small, would make large ones look hopeless.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._windows: dict[int, RecentSamples] = defaultdict(partial(RecentSamples, clock))

    def observe(self, seconds: float, size: int) -> None:
        self._windows[size.bit_length()].add(seconds)

    def expected(self, size: int) -> float:
        """Returns the median, in seconds; 0 if nothing of this size was decoded lately."""
        return self._windows[size.bit_length()].quantile(0.5) or 0.0  # the benefit of the doubt


class Arrivals:
    """Learns the rate of recent requests and the time that they had; what is longer ago counts for less.

    The newest is no sign that more come: counted, a lone request would make room for others that nobody sends.
    """

    def __init__(self) -> None:
        self._weight = 0.0
        self._newest = 0.0
        self._budgets = 0.0
        self._counted_at = 0.0

    def add(self, now: float, budget: float) -> None:
        """Counts a request that has `budget` seconds until it is due."""
        self._decay(now)
        self._weight += 1
        self._newest = 1.0
        self._budgets += max(0.0, budget)

    def recent(self, now: float) -> tuple[float, float]:
        """Returns the arrivals a second, and their mean budget in seconds."""
        self._decay(now)
        return (self._weight - self._newest) / MEMORY_SECONDS, self._budgets / self._weight if self._weight else 0.0

    def _decay(self, now: float) -> None:
        kept = exp((self._counted_at - now) / MEMORY_SECONDS)
        self._weight *= kept
        self._newest *= kept
        self._budgets *= kept
        self._counted_at = now
