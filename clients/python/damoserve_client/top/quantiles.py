"""Quantiles of what a histogram counted."""

import math
from collections.abc import Sequence

Buckets = Sequence[tuple[float, float]]
"""Upper edge and how many values are not above it, by ascending edge; the last edge is infinity."""


def quantile(share: float, buckets: Buckets) -> float | None:
    """The value that this share (above 0, up to 1) of the values does not exceed; None if there are no values.

    It is found as Prometheus' `histogram_quantile` finds it
    (https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile): values are taken to be spread
    evenly over their bucket and to be positive, and one beyond the last finite edge counts as that edge.
    """
    if not buckets or not buckets[-1][1]:
        return None
    rank = share * buckets[-1][1]
    lower, below = 0.0, 0.0
    for upper, count in buckets:
        if count >= rank and count > below:
            if math.isinf(upper):
                return lower
            within = (rank - below) / (count - below)
            return min(upper, lower + (upper - lower) * within)  # rounding must not leave the bucket
        lower, below = upper, max(below, count)
    return lower
