"""Decoding of the head's raw maps to candidates, for accelerators whose graph ends there."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles.imaging import Size

STRIDES = (8, 16, 32)
"""Pixels of the network's input between two anchors, for each level from fine to coarse."""
CLASS_MAPS = tuple(f"class_logits_{stride}" for stride in STRIDES)
"""Names of the outputs with class logits, `[N, C, H / stride, W / stride]` each."""
BOX_MAPS = tuple(f"box_logits_{stride}" for stride in STRIDES)
"""Names of the outputs with box logits, `[N, 4 * bins, H / stride, W / stride]` each: left, top, right, bottom."""

Maps = Sequence[NDArray[np.float32]]


def decode_maps(
    class_maps: Maps, box_maps: Maps, size: Size, candidates: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns scores `[N, K, C]` and boxes `[N, K, 4]` of the K = min(candidates, anchors) best anchors, best first.

    The maps are those of the levels from fine to coarse, `size` is the network's input. Boxes are xyxy in its pixels,
    unclipped: the expectation of a softmax over bins 0, 1, 2 .. is the distance of a side from the grid point in
    strides (generalised focal loss, arXiv 2006.04388). This is what a graph with the tail `best` computes.
    """
    class_logits, box_logits = _anchors(class_maps), _anchors(box_maps)
    best = np.argsort(-class_logits.max(2), axis=1, kind="stable")[:, :candidates]
    rows = best[:, :, None]
    scores = 0.5 + 0.5 * np.tanh(0.5 * np.take_along_axis(class_logits, rows, 1))  # the sigmoid, without overflow
    distances = _expectation(np.take_along_axis(box_logits, rows, 1))
    grid = _grid(class_maps, size)[best]
    points, strides = grid[..., :2], grid[..., 2:]
    return scores, np.concatenate([points - distances[..., :2] * strides, points + distances[..., 2:] * strides], 2)


def _anchors(maps: Maps) -> NDArray[np.float32]:
    """Joins levels `[N, K, H, W]` to `[N, A, K]`, each level row-major."""
    flat = [level.reshape(*level.shape[:2], -1).transpose(0, 2, 1) for level in maps]
    return np.concatenate(flat, 1, dtype=np.float32)


def _expectation(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the expected bins `[N, K, 4]` of logits `[N, K, 4 * bins]`."""
    sides = logits.reshape(*logits.shape[:2], 4, -1)
    weights = np.exp(sides - sides.max(3, keepdims=True))
    bins = np.arange(sides.shape[3], dtype=np.float32)
    expected: NDArray[np.float32] = (weights * bins).sum(3) / weights.sum(3)
    return expected


def _grid(maps: Maps, size: Size) -> NDArray[np.float32]:
    """Returns x, y and stride of every anchor in pixels, `[A, 3]`."""
    rows = []
    for level in maps:
        height, width = level.shape[2:]
        stride = size.height // height
        y, x = np.mgrid[:height, :width] * stride
        rows.append(np.stack([x.ravel(), y.ravel(), np.full(height * width, stride)], 1))
    return np.concatenate(rows).astype(np.float32)
