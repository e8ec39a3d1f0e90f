"""The host's decoding of raw maps, against sums written out."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from damoserve_profiles.imaging import Size
from damoserve_profiles.maps import STRIDES, decode_maps

SIZE = Size(64, 32)
BINS = 8


def random_maps(seed: int, channels: int, spread: float = 3.0) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    shapes = [(2, channels, SIZE.height // stride, SIZE.width // stride) for stride in STRIDES]
    return [rng.normal(0, spread, shape).astype(np.float32) for shape in shapes]


def anchor(level: int, row: int, column: int, boxes: list[NDArray[np.float32]], image: int) -> list[float]:
    """One box, as the definition says."""
    distances = []
    for side in range(4):
        logits = boxes[level][image, side * BINS : (side + 1) * BINS, row, column].astype(float)
        weights = [math.exp(value) for value in logits]
        distances.append(STRIDES[level] * sum(bin_ * weight for bin_, weight in enumerate(weights)) / sum(weights))
    x, y = column * STRIDES[level], row * STRIDES[level]
    return [x - distances[0], y - distances[1], x + distances[2], y + distances[3]]


@settings(max_examples=10)
@given(seed=st.integers(0, 1000), candidates=st.integers(1, 60))
def test_the_best_anchors_are_decoded(seed: int, candidates: int) -> None:
    classes, boxes = random_maps(seed, 3), random_maps(seed + 1, 4 * BINS)
    scores, found = decode_maps(classes, boxes, SIZE, candidates)
    anchors = [
        (level, row, column)
        for level, maps in enumerate(classes)
        for row in range(maps.shape[2])
        for column in range(maps.shape[3])
    ]
    assert scores.shape == (2, min(candidates, len(anchors)), 3)
    assert scores.dtype == found.dtype == np.float32
    for image in range(2):
        best = sorted(anchors, key=lambda a: -classes[a[0]][image, :, a[1], a[2]].max())[:candidates]
        expected = [[1 / (1 + math.exp(-value)) for value in classes[a][image, :, r, c]] for a, r, c in best]
        assert np.allclose(scores[image], expected, atol=1e-5)
        assert np.allclose(found[image], [anchor(*a, boxes, image) for a in best], atol=1e-3)


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_extreme_logits_do_not_overflow(value: float) -> None:
    classes = [np.full_like(level, value) for level in random_maps(0, 2)]
    boxes = [np.full_like(level, value) for level in random_maps(0, 4 * BINS)]
    scores, found = decode_maps(classes, boxes, SIZE, 10)
    assert np.allclose(scores, float(value > 0))
    assert np.isfinite(found).all()
