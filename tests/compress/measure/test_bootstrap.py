"""The paired bootstrap against average precision itself, and what its intervals must obey."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damoserve_compress.datasets import Sample
from damoserve_compress.measure.bootstrap import Interval, compare, drawn_precision, match
from damoserve_compress.measure.evaluate import average_precision, ground_truth
from damoserve_profiles.postprocess import Detections
from tests.support.compress.random_detections import Listed, all_found, near_misses, random_dataset

RESAMPLES = 150
NOTHING = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))

seeds = st.integers(0, 2**32 - 1)


def coarse(rng: np.random.Generator, dataset: Listed) -> list[Detections]:
    """Near misses, many of equal score."""
    return [Detections(found.boxes, np.round(found.scores, 1), found.labels) for found in near_misses(rng, dataset)]


def drawn(dataset: Listed, detections: Sequence[Detections], counts: list[int]) -> list[float]:
    [precision] = drawn_precision(match(ground_truth(dataset), detections), np.array([counts]))
    return [precision.mean(), precision[0], precision[5]]


def measured(dataset: Listed, detections: Sequence[Detections]) -> list[float]:
    metrics = average_precision(ground_truth(dataset), detections)
    return [metrics.ap, metrics.ap50, metrics.ap75]


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_every_image_once_is_average_precision(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dataset = random_dataset(rng)
    detections = coarse(rng, dataset)
    assert drawn(dataset, detections, [1] * len(dataset)) == pytest.approx(measured(dataset, detections), abs=1e-9)


@given(seeds, st.lists(st.integers(0, 3), min_size=4, max_size=4).filter(any))
@settings(max_examples=20, deadline=None)
def test_a_draw_is_average_precision_of_the_images_drawn(seed: int, counts: list[int]) -> None:
    """Few images, so that some draws hold no box of a class."""
    rng = np.random.default_rng(seed)
    dataset = random_dataset(rng, len(counts))
    detections = near_misses(rng, dataset)
    chosen = np.repeat(np.arange(len(counts)), counts).tolist()
    again = Listed([dataset[index] for index in chosen])
    if not any(len(dataset[index].boxes) for index in chosen):
        assert drawn(dataset, detections, counts) == [0, 0, 0]
        return
    expected = measured(again, [detections[index] for index in chosen])
    assert drawn(dataset, detections, counts) == pytest.approx(expected, abs=1e-9)


@given(seeds)
@settings(max_examples=8, deadline=None)
def test_a_model_does_not_differ_from_itself(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dataset = random_dataset(rng)
    detections = near_misses(rng, dataset)
    difference = compare(ground_truth(dataset), detections, detections, RESAMPLES)
    assert difference.ap == difference.ap50 == Interval(0, 0, 0)


@given(seeds)
@settings(max_examples=8, deadline=None)
def test_the_other_way_round_the_signs_are_turned(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dataset = random_dataset(rng)
    models = near_misses(rng, dataset), near_misses(rng, dataset)
    there, back = (
        compare(ground_truth(dataset), *models, RESAMPLES).ap,
        compare(ground_truth(dataset), *models[::-1], RESAMPLES).ap,
    )
    assert (there.value, there.lower, there.upper) == pytest.approx((-back.value, -back.upper, -back.lower), abs=1e-12)
    assert there.lower < there.upper


def test_the_value_is_the_difference_of_both_and_a_clear_one_is_told_from_chance() -> None:
    rng = np.random.default_rng(0)
    dataset = random_dataset(rng, 40)
    worse, perfect = near_misses(rng, dataset), all_found(dataset)
    difference = compare(ground_truth(dataset), worse, perfect, RESAMPLES)
    before, after = average_precision(ground_truth(dataset), worse), average_precision(ground_truth(dataset), perfect)
    assert difference.ap.value == pytest.approx(after.ap - before.ap, abs=1e-9)
    assert difference.ap50.value == pytest.approx(after.ap50 - before.ap50, abs=1e-9)
    assert 0 < difference.ap.lower < difference.ap.value < difference.ap.upper < 1


def test_equally_good_models_are_not_told_apart() -> None:
    """By chance alone one interval in twenty would leave 0 out."""
    holding = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        dataset = random_dataset(rng, 30)
        difference = compare(ground_truth(dataset), near_misses(rng, dataset), near_misses(rng, dataset), RESAMPLES).ap
        holding += difference.lower <= 0 <= difference.upper
    assert holding >= 8


def test_the_seed_decides_the_draws() -> None:
    rng = np.random.default_rng(0)
    dataset = random_dataset(rng)
    models = near_misses(rng, dataset), near_misses(rng, dataset)
    first = compare(ground_truth(dataset), *models, RESAMPLES, seed=1)
    assert first == compare(ground_truth(dataset), *models, RESAMPLES, seed=1)
    assert (first.resamples, first.seed) == (RESAMPLES, 1)
    other = compare(ground_truth(dataset), *models, RESAMPLES, seed=2)
    assert other.ap.value == first.ap.value
    assert other.ap.lower != first.ap.lower


def test_a_model_that_finds_nothing_loses_all() -> None:
    dataset = random_dataset(np.random.default_rng(0))
    lost = compare(ground_truth(dataset), all_found(dataset), [NOTHING] * len(dataset), RESAMPLES).ap
    assert (lost.value, lost.lower, lost.upper) == pytest.approx((-1, -1, -1))


def test_what_cannot_be_compared_is_refused() -> None:
    dataset = random_dataset(np.random.default_rng(0))
    with pytest.raises(ValueError, match="1 lists of detections for 12 images"):
        compare(ground_truth(dataset), all_found(dataset), [NOTHING])
    empty = Listed([Sample(np.zeros((9, 9, 3), np.uint8), np.empty((0, 4), np.float32), np.empty(0, np.int64), 0)])
    with pytest.raises(ValueError, match="no image has a box"):
        compare(ground_truth(empty), [NOTHING], [NOTHING])


def test_an_interval_is_written_in_points() -> None:
    assert str(Interval(-0.0032, -0.01174, 0.00808)) == "-0.32 (-1.17 to +0.81)"
