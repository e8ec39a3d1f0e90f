"""Views stay in step with their boxes and depend on the generator alone."""

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from damoserve_compress.datasets import Sample
from damoserve_compress.training.augment import AugmentConfig
from damoserve_compress.training.augment import augment as augment_with
from damoserve_profiles.imaging import Size, resize
from damoserve_profiles.manifest import InputSpec

STILL: dict[str, Any] = {"horizontal_flip": 0, "vertical_flip": 0, "scale": (1.0, 1.0)}
COLOURLESS: dict[str, Any] = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
SQUARE = InputSpec(width=96, height=96)
PLAIN = AugmentConfig(**STILL, **COLOURLESS)
GEOMETRY = AugmentConfig(**COLOURLESS, fill=0)


def augment(sample: Sample, size: int, config: AugmentConfig, rng: np.random.Generator) -> Sample:
    """A view for which no other image is needed."""

    def nothing() -> Sample:
        raise AssertionError("drew another image")

    return augment_with(sample, nothing, InputSpec(width=size, height=size), config, rng)


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
        assert np.abs(view.boxes[0] - extent(view.image)).max() <= 1.01
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
    both = replace(PLAIN, horizontal_flip=1, vertical_flip=1)
    view = augment(sample, 96, both, np.random.default_rng(0))
    assert view.boxes.tolist() == [pytest.approx([72, 72, 96, 96])]
    assert view.image[84, 84].tolist() == [255, 255, 255]
    assert view.image[12, 12].tolist() == [0, 0, 0]


def test_boxes_mostly_outside_are_dropped_with_their_labels() -> None:
    zoomed = replace(PLAIN, scale=(4.0, 4.0), min_visible=0.5)
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
    config = AugmentConfig(**STILL, contrast=0, brightness=0.5)
    view = augment(sample, 96, config, np.random.default_rng(2))
    inner = view.image[2:-2, 2:-2].reshape(-1, 3)
    # Hue turns about the grey axis and saturation scales away from it: grey stays grey.
    assert np.ptp(inner.astype(int)) <= 1
    assert 50 <= inner[0, 0] <= 150
    assert inner[0, 0] != 100
    assert view.boxes.tolist() == [[8, 8, 40, 40]]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_turned_box_holds_its_turned_rectangle_tightly(seed: int) -> None:
    sample = rectangles((60, 40, 100, 80))
    turned = replace(GEOMETRY, scale=(0.8, 1.0), rotation=180, shear=10)
    view = augment(sample, 128, turned, np.random.default_rng(seed))
    seen = extent(view.image)
    if len(view.boxes):
        assert np.abs(view.boxes[0] - seen).max() <= 1.6


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_turned_round_object_keeps_a_tight_box(seed: int) -> None:
    image = np.zeros((120, 160, 3), np.uint8)
    cv2.ellipse(image, (80, 60), (30, 18), 0, 0, 360, (255, 255, 255), -1)
    sample = Sample(image, np.array([[50, 42, 111, 79]], np.float32), np.array([0]), 0)
    turned = replace(GEOMETRY, scale=(1.0, 1.0), rotation=180, round_objects=True)
    view = augment(sample, 128, turned, np.random.default_rng(seed))
    assert np.abs(view.boxes[0] - extent(view.image)).max() <= 1.6


def extent(image: NDArray[np.uint8]) -> list[int]:
    """Left, top, right and bottom of what is bright."""
    bright = image[..., 0] > 127
    rows, columns = np.nonzero(bright.any(1))[0], np.nonzero(bright.any(0))[0]
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else [0, 0, 0, 0]


def flat(level: int) -> Sample:
    """An even picture that is one box, labelled with its grey level."""
    return Sample(np.full((80, 80, 3), level, np.uint8), np.array([[0, 0, 80, 80]], np.float32), np.array([level]), 0)


def test_a_mosaic_shows_four_images_each_under_its_own_boxes() -> None:
    others = iter([flat(80), flat(120), flat(200)])
    config = replace(PLAIN, mosaic=1, min_visible=0)
    view = augment_with(flat(40), lambda: next(others), SQUARE, config, np.random.default_rng(4))
    assert view.labels.tolist() == [40, 80, 120, 200]
    for (left, top, right, bottom), level in zip(view.boxes.astype(int), view.labels, strict=True):
        assert (view.image[top:bottom, left:right] == level).all()
    # The four windows tile the view.
    assert (view.boxes[:, 2:] - view.boxes[:, :2]).prod(1).sum() == 96 * 96
    assert view.boxes.min() == 0
    assert view.boxes.max() == 96


def test_mixup_is_the_mean_with_the_boxes_of_both() -> None:
    config = replace(PLAIN, mixup=1, mixup_scale=(1.0, 1.0))
    view = augment_with(flat(40), lambda: flat(200), SQUARE, config, np.random.default_rng(0))
    assert (view.image[1:-1, 1:-1] == 120).all()
    assert view.labels.tolist() == [40, 200]
    assert view.boxes.tolist() == [[0, 0, 96, 96]] * 2


def test_a_fitted_view_keeps_the_aspect() -> None:
    sample = rectangles((0, 0, 160, 120))
    fitted = InputSpec(width=96, height=96, resize="fit")
    view = augment_with(sample, lambda: sample, fitted, PLAIN, np.random.default_rng(0))
    left, top, right, bottom = view.boxes[0]
    assert (right - left, bottom - top) == pytest.approx((96, 72))
    assert extent(view.image) == pytest.approx([left, top, right, bottom], abs=1)
