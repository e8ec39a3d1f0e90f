"""Ranges: from the distribution of an activation to the interval that its 8 bits cover.

Every range holds zero, which then is one of the 256 steps: padding and ReLU put zeros everywhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from damoserve_compress.quantise.histogram import BINS, Histogram

Method = Literal["minmax", "percentile", "mse", "entropy"]

STEPS: Final = 255
GRID: Final = 64
"""The number of shares of the whole range that are tried at either end."""


@dataclass(frozen=True)
class Range:
    """The interval that 8 bits cover; `low <= 0 <= high`."""

    low: float
    high: float
    method: Method
    error: float
    """Expected squared error of one value; see `expected_error`."""


def choose_range(histogram: Histogram, method: Method | Literal["auto"], percentile: float) -> Range:
    """The range that `method` gives, or of all methods the one with the least expected error, the simplest first."""
    methods = _methods(percentile)
    names: list[Method] = list(methods) if method == "auto" else [method]
    found = []
    for name in names:
        low, high = methods[name](histogram)
        found.append(Range(low, high, name, float(expected_error(histogram, low, high))))
    return min(found, key=lambda range_: range_.error)


def _methods(percentile: float) -> Mapping[Method, Callable[[Histogram], tuple[float, float]]]:
    return {
        "minmax": minmax_range,
        "percentile": lambda histogram: percentile_range(histogram, percentile),
        "mse": mse_range,
        "entropy": entropy_range,
    }


def expected_error(
    histogram: Histogram, low: NDArray[np.float64] | float, high: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    """Mean squared error of quantising the values to 256 steps over `[low, high]`; both may be arrays of one shape.

    A value inside the range is off by step^2 / 12 on average, as rounding spreads errors evenly over a step; one
    outside by its squared distance from the range, taken from the middle of its bin; a zero not at all.
    """
    centres, counts = histogram.centres, histogram.counts.astype(np.float64)
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    sums = np.stack([np.concatenate([[0.0], np.cumsum(counts * centres**power)]) for power in range(3)])
    below, above = np.searchsorted(centres, low, "left"), np.searchsorted(centres, high, "right")
    clipped = _squared_distances(sums[:, below], low)
    clipped += _squared_distances(sums[:, -1].reshape(3, *[1] * high.ndim) - sums[:, above], high)
    inside = sums[0, above] - sums[0, below]
    step = (high - low) / STEPS
    # Sums of squares that cancel leave rounding, which may lie below zero.
    return np.asarray((np.maximum(clipped, 0) + inside * step**2 / 12) / max(histogram.total, 1))


def _squared_distances(sums: NDArray[np.float64], bound: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of `(x - bound)^2` over values of which `sums` has the count, the sum, and the sum of squares."""
    return np.asarray(sums[2] - 2 * bound * sums[1] + bound**2 * sums[0])


def minmax_range(histogram: Histogram) -> tuple[float, float]:
    """The range of all values."""
    return min(histogram.low, 0.0), max(histogram.high, 0.0)


def percentile_range(histogram: Histogram, percentile: float) -> tuple[float, float]:
    """The range of all but `100 - percentile` per cent of the values, half of them at either end, to a bin's width."""
    counts = histogram.counts.copy()
    counts[BINS] += histogram.zeros
    seen = np.cumsum(counts)
    total = int(seen[-1])
    allowed = total * (1 - percentile / 100) / 2
    edges = histogram.edges
    low = edges[np.searchsorted(seen, allowed, "right")]
    high = edges[np.searchsorted(seen, total - allowed, "left") + 1]
    whole = minmax_range(histogram)
    return max(min(float(low), 0.0), whole[0]), min(max(float(high), 0.0), whole[1])


def mse_range(histogram: Histogram) -> tuple[float, float]:
    """The least expected error over a grid of shares of the whole range at either end."""
    whole = minmax_range(histogram)
    shares = np.arange(GRID, 0, -1) / GRID
    lows, highs = (share.ravel() for share in np.meshgrid(whole[0] * shares, whole[1] * shares, indexing="ij"))
    best = int(np.argmin(expected_error(histogram, lows, highs)))
    return float(lows[best]), float(highs[best])


def entropy_range(histogram: Histogram) -> tuple[float, float]:
    """The range whose 256 steps keep most of the distribution's information (Migacz, GTC 2017).

    Ranges `[-t, t]`, cut to the values seen, are compared by the Kullback-Leibler divergence between the distribution,
    with what lies outside put in the outermost bins, and what is left of it in 256 steps. Zeros are left out, as they
    are exact in every range.
    """
    whole = minmax_range(histogram)
    first, last = (int(np.clip(np.floor(bound / histogram.width), -BINS, BINS - 1)) for bound in whole)
    # Below two bins for a step there is nothing to lose by, and every range would look perfect.
    smallest = min(2 * (STEPS + 1), max(-first, last + 1))
    best, choice = np.inf, whole
    for size in np.linspace(max(-first, last + 1), smallest, GRID, dtype=int).tolist():
        start, stop = max(first, -size), min(last + 1, size)
        divergence = _divergence(histogram.counts, start + BINS, stop + BINS)
        if divergence < best:
            edges = start * histogram.width, stop * histogram.width
            best, choice = divergence, (max(edges[0], whole[0]), min(edges[1], whole[1]))
    return choice


def _divergence(counts: NDArray[np.int64], start: int, stop: int) -> float:
    """Kullback-Leibler divergence in nats that the bins from `start` to `stop` lose in 256 steps."""
    kept = counts[start:stop].astype(np.float64)
    reference = kept.copy()
    reference[0] += counts[:start].sum()
    reference[-1] += counts[stop:].sum()
    step = np.arange(len(kept)) * (STEPS + 1) // len(kept)
    sums = np.bincount(step, kept, STEPS + 1)
    filled = np.bincount(step, kept > 0, STEPS + 1)
    spread = np.where(kept > 0, (sums / np.maximum(filled, 1))[step], 0.0)
    if not spread.any():
        return float(np.inf) if reference.any() else 0.0
    reference, spread = reference / reference.sum(), spread / spread.sum()
    there = reference > 0
    # Outliers may land in an empty bin: a small probability there instead of none keeps the divergence finite.
    return float(np.sum(reference[there] * np.log(reference[there] / np.maximum(spread[there], 1e-9))))
