"""The edges of the histograms. Every tier's objective is one: what is in time is counted, not interpolated."""

from collections.abc import Iterable

# fmt: off
SECONDS = (
    0.001, 0.0015, 0.0025, 0.004, 0.006, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075,
    0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10,
)
# fmt: on
"""Edges for requests, in seconds."""
SHORT_SECONDS = (0.0001, 0.00025, 0.0005, *SECONDS)
"""Edges for stages: a request that need not wait waits for microseconds."""
CALL_SECONDS = (0.01, 0.1, 1, 10)
"""Edges for calls of gRPC: fewer, as every method has them, and requests have finer ones of their own."""
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
"""Edges for batches, in images."""


def with_objectives(edges: Iterable[float], objectives: Iterable[float]) -> tuple[float, ...]:
    """Returns the edges and the objectives together, in seconds and in rising order."""
    return tuple(sorted({float(edge) for edge in (*edges, *objectives)}))
