"""Views stay in step with their boxes and depend on the generator alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damoserve_compress.datasets import Sample
from damoserve_compress.training.augment import AugmentConfig, augment
from damoserve_profiles.imaging import Size, resize

PLAIN = AugmentConfig(0.0, 0.0, (1.0, 1.0), brightness=0, contrast=0, saturation=0, hue=0)
GEOMETRY = AugmentConfig(brightness=0, contrast=0, saturation=0, hue=0, fill=0)


def rectangles(*boxes: tuple[int, int, int, int], width: int = 160, height: int = 120) -> Sample:
    """White rectangles on black, labelled in turn."""
    image = np.zeros((height, width, 3), np.uint8)
    for left, top, right, bottom in boxes:
        image[top:bottom, left:right] = 255
    return Sample(image, np.array(boxes, np.float32).reshape(-1, 4), np.arange(len(boxes), dtype=np.int64), 5)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), left=st.integers(0, 100), top=st.integers(0, 70))
def test_a_box_stays_on_what_it_outlines(seed: int, left: int, top: int) -> None:
    sample = rectangles((left, top, left + 50, top + 40))
    view = augment(sample, 96, GEOMETRY, np.random.default_rng(seed))
    bright = view.image[..., 0] > 127
    assert view.image.shape == (96, 96, 3)
    if len(view.boxes):
        rows, columns = np.nonzero(bright.any(1))[0], np.nonzero(bright.any(0))[0]
        seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(view.boxes[0] - seen).max() <= 1.01
    else:
        full = 50 / 160 * 96 * 0.7 * 40 / 120 * 96 * 0.7
        assert bright.sum() < full or bright.any(0).sum() <= 3 or bright.any(1).sum() <= 3


def test_without_randomness_it_is_the_plain_stretch_of_evaluation() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    sample = Sample(noise, np.array([[16, 12, 80, 60]], np.float32), np.array([2]), 0)
    view = augment(sample, 96, PLAIN, np.random.default_rng(1))
    difference = np.abs(view.image.astype(int) - resize(noise, Size(96, 96)))
    # warpAffine interpolates in steps of 1/32 of a pixel; its outermost pixels mix in the fill.
    assert difference[1:-1, 1:-1].max() <= 10
    assert difference[1:-1, 1:-1].mean() < 1.5
    assert view.boxes.tolist() == [pytest.approx([9.6, 9.6, 48, 48])]
    assert view.labels.tolist() == [2]


def test_flips_mirror_picture_and_boxes() -> None:
    sample = rectangles((0, 0, 40, 30))
    both = AugmentConfig(1.0, 1.0, (1.0, 1.0), brightness=0, contrast=0, saturation=0, hue=0)
    view = augment(sample, 96, both, np.random.default_rng(0))
    assert view.boxes.tolist() == [pytest.approx([72, 72, 96, 96])]
    assert view.image[84, 84].tolist() == [255, 255, 255]
    assert view.image[12, 12].tolist() == [0, 0, 0]


def test_boxes_mostly_outside_are_dropped_with_their_labels() -> None:
    zoomed = AugmentConfig(0, 0, (4.0, 4.0), min_visible=0.5)
    sample = rectangles(*[(x, y, x + 20, y + 20) for x in range(0, 160, 20) for y in range(0, 120, 20)])
    view = augment(sample, 96, zoomed, np.random.default_rng(3))
    assert 0 < len(view.boxes) == len(view.labels) < len(sample.boxes) / 2
    assert ((view.boxes >= 0) & (view.boxes <= 96)).all()
    full = (20 / 160 * 96 * 4) * (20 / 120 * 96 * 4)
    assert ((view.boxes[:, 2:] - view.boxes[:, :2]).prod(1) >= 0.5 * full - 0.1).all()


def test_slivers_are_dropped() -> None:
    view = augment(rectangles((50, 50, 52, 90)), 96, PLAIN, np.random.default_rng(0))
    assert len(view.boxes) == len(view.labels) == 0


def test_a_picture_without_boxes_is_fine() -> None:
    view = augment(rectangles(), 96, AugmentConfig(), np.random.default_rng(0))
    assert view.boxes.shape == (0, 4)
    assert view.boxes.dtype == np.float32


def test_same_seed_same_view_other_seed_another() -> None:
    sample = rectangles((20, 20, 70, 60))
    first, again, other = (augment(sample, 96, AugmentConfig(), np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert (first.image == again.image).all()
    assert (first.boxes == again.boxes).all()
    assert (first.image != other.image).any()


def test_colour_jitter_leaves_boxes_and_changes_grey_evenly() -> None:
    sample = Sample(np.full((96, 96, 3), 100, np.uint8), np.array([[8, 8, 40, 40]], np.float32), np.array([0]), 0)
    config = AugmentConfig(0, 0, (1.0, 1.0), contrast=0, brightness=0.5)
    view = augment(sample, 96, config, np.random.default_rng(2))
    inner = view.image[2:-2, 2:-2].reshape(-1, 3)
    # Hue turns about the grey axis and saturation scales away from it: grey stays grey.
    assert np.ptp(inner.astype(int)) <= 1
    assert 50 <= inner[0, 0] <= 150
    assert inner[0, 0] != 100
    assert view.boxes.tolist() == [[8, 8, 40, 40]]
