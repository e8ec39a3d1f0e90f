"""The distribution of a tensor's values over any number of images, in constant memory."""

import math

import numpy as np
from numpy.typing import NDArray

BINS = 4096
"""The number of bins on either side of zero."""
_SMALLEST = 2.0**-100
"""Width of the first bins of a tensor that holds nothing but zeros; its reciprocal is a float32 too."""


class Histogram:
    """Counts of values in bins of equal width, aligned at zero, that widen as larger values come.

    The width is a power of two, so each wider bin is exactly two narrower ones: no value is lost, and the result does
    not depend on the order in which values came. Zeros, which a ReLU makes many of and which quantise without error,
    are counted apart.
    """

    def __init__(self) -> None:
        self.width = _SMALLEST
        self.counts: NDArray[np.int64] = np.zeros(2 * BINS, np.int64)
        """Bin `i` holds the values in `[(i - BINS) * width, (i - BINS + 1) * width)`, without zeros."""
        self.zeros = 0
        self.low = math.inf
        self.high = -math.inf

    @property
    def total(self) -> int:
        """The number of values seen, zeros among them."""
        return self.zeros + int(self.counts.sum())

    @property
    def edges(self) -> NDArray[np.float64]:
        """`[2 * BINS + 1]`."""
        return np.arange(-BINS, BINS + 1, dtype=np.float64) * self.width

    @property
    def centres(self) -> NDArray[np.float64]:
        """`[2 * BINS]`: of the bins, but nowhere outside of the values seen."""
        return np.clip((np.arange(-BINS, BINS) + 0.5) * self.width, self.low, self.high)

    def add(self, values: NDArray[np.float32]) -> None:
        """Counts the values of an array of any shape. Raises ValueError for values that are not finite."""
        flat = values.ravel()
        low, high = float(flat.min()), float(flat.max())
        if not math.isfinite(low + high):
            raise ValueError("values are not finite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._cover(max(-low, high))
        index = np.floor(flat * np.float32(1 / self.width)).astype(np.int32)
        self.counts += np.bincount(index + BINS, minlength=2 * BINS)
        zeros = int(np.count_nonzero(flat == 0))
        self.zeros += zeros
        self.counts[BINS] -= zeros

    def _cover(self, size: float) -> None:
        if size < BINS * self.width:
            return
        width = 2.0 ** (math.frexp(size)[1] - math.frexp(BINS)[1] + 1)
        factor = int(min(width / self.width, BINS))  # beyond it, all values are in the two bins next to zero
        below, above = (part.reshape(-1, factor).sum(1) for part in np.split(self.counts, 2))
        self.counts[:] = 0
        self.counts[BINS - len(below) : BINS] = below
        self.counts[BINS : BINS + len(above)] = above
        self.width = width
