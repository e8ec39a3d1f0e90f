"""Changes stay about their boxes, follow the training, and depend on the generator alone."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from damoserve_compress.datasets import Sample
from damoserve_compress.training.box_augment import BoxAugmentConfig, augment_boxes

OPERATIONS = (
    "brightness",
    "color",
    "hflip",
    "rotate",
    "sharpness",
    "shear_x",
    "solarize_add",
    "translate_x",
    "translate_y",
)
CENTRED = (140, 100, 180, 150)


def textured(*boxes: Sequence[float], width: int = 320, height: int = 240) -> Sample:
    """Soft coloured noise with `boxes`, labelled in turn."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)
    return Sample(image, np.array(boxes, np.float32).reshape(-1, 4), np.arange(len(boxes), dtype=np.int64), 5)


def always(*operations: str, magnitude: float = 8) -> BoxAugmentConfig:
    """Every operation, in turn, on every box."""
    steps = tuple((name, 1.0, magnitude) for name in operations)
    return BoxAugmentConfig(policies=(steps,), box_probability=3.0, colour_odds=(1, 1, 1), geometric_odds=(1, 1, 1))


def small_limits(config: BoxAugmentConfig) -> BoxAugmentConfig:
    """The same with every box a small one, whose Gaussian covers 30 x 30 pixels."""
    return replace(config, area_limits=(1e4, 2e4, 3e4), area_ratios=(900 / 1e4 / 0.3, 1, 1))


def change(sample: Sample, config: BoxAugmentConfig, seed: int = 0) -> NDArray[np.uint8]:
    """Largest difference of a channel for each pixel [H, W] at the end of the training."""
    augmented = augment_boxes(sample, 1.0, config, np.random.default_rng(seed))
    difference: NDArray[np.uint8] = cv2.absdiff(augmented.image, sample.image).max(2)
    return difference


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_changes_the_middle_of_its_box_most_and_nothing_far_away(operation: str) -> None:
    sample = textured(CENTRED)
    changed = change(sample, small_limits(always(operation)))
    rows, columns = np.mgrid[:240, :320]
    distance = np.hypot((columns + 0.5 - 160) / 40, (rows + 0.5 - 125) / 50)
    middle, edge = changed[distance < 0.4].mean(), changed[(distance > 0.8) & (distance < 1.2)].mean()
    assert middle > 1
    assert middle > 2 * edge
    assert not changed[distance > 2].any()


def test_every_operation_has_its_own_effect() -> None:
    sample = textured(CENTRED)
    pictures = {
        augment_boxes(sample, 1.0, small_limits(always(name)), np.random.default_rng(0)).image.tobytes()
        for name in OPERATIONS
    }
    assert len(pictures) == len(OPERATIONS)


def test_a_flip_mirrors_the_middle_of_the_box() -> None:
    sample = textured(CENTRED)
    flipped = augment_boxes(sample, 1.0, small_limits(always("hflip")), np.random.default_rng(0)).image
    # Beside the centre the weight is nearly one.
    assert np.abs(flipped[125, 158:162].astype(int) - sample.image[125, 161:157:-1]).max() <= 2


@pytest.mark.parametrize(("operation", "axis"), [("translate_x", 1), ("translate_y", 0)])
def test_a_translation_moves_the_middle_along_its_axis_by_a_quarter_of_the_side(operation: str, axis: int) -> None:
    sample = textured((120, 80, 200, 160))
    moved = augment_boxes(sample, 1.0, always(operation, magnitude=10), np.random.default_rng(0)).image
    assert (
        min(
            np.abs(moved[118:122, 158:162].astype(int) - np.roll(sample.image, shift, axis)[118:122, 158:162]).max()
            for shift in (-20, 20)
        )
        <= 2
    )


def test_colours_do_as_named() -> None:
    sample = textured(CENTRED)
    at = (125, 160)
    middle = {
        name: augment_boxes(sample, 1.0, always(name, magnitude=0), np.random.default_rng(0)).image[at].astype(int)
        for name in ("color", "brightness")
    }
    before = sample.image[at].astype(int)
    assert np.ptp(middle["color"]) <= 0.15 * np.ptp(before) + 2
    assert middle["brightness"] == pytest.approx(0.1 * before, abs=3)
    dark = replace(sample, image=np.full_like(sample.image, 20))
    assert augment_boxes(dark, 1.0, always("solarize_add", magnitude=5), np.random.default_rng(0)).image[
        at
    ] == pytest.approx(75, abs=1)


@pytest.mark.parametrize(
    ("side", "area"),
    [(20, 6 * 1024), (60, 1024 + 5120), (120, 0.4 * 25600), (180, 0.4 * 180**2)],
    ids=["small", "medium", "large", "larger"],
)
def test_the_area_that_changes_colour_depends_on_the_size_of_the_box(side: int, area: float) -> None:
    # In a picture of 400 pixels the limits are halved.
    box = (200 - side // 2, 200 - side // 2, 200 + side // 2, 200 + side // 2)
    white = replace(textured(box, width=400, height=400), image=np.full((400, 400, 3), 250, np.uint8))
    changed = change(white, always("brightness", magnitude=0))
    assert changed.max() == pytest.approx(0.9 * 250, abs=2)
    assert changed.sum() / (0.9 * 250) == pytest.approx(area, rel=0.02)


def test_the_odds_of_a_colour_depend_on_the_size_of_the_box() -> None:
    samples = {"small": textured((150, 110, 160, 120)), "large": textured((60, 20, 260, 220))}
    config = BoxAugmentConfig(policies=((("brightness", 1.0, 0),),), box_probability=1.0)
    share = {
        name: np.mean([change(sample, config, seed).any() for seed in range(150)]) for name, sample in samples.items()
    }
    assert share["small"] == pytest.approx(7 / 13, abs=0.15)
    assert share["large"] == pytest.approx(1 / 13, abs=0.08)


def test_operations_come_in_with_the_training() -> None:
    sample = textured(*[(x, y, x + 30, y + 30) for x in range(0, 320, 40) for y in range(0, 240, 40)])
    shares = [
        np.mean(
            [
                (
                    augment_boxes(sample, progress, BoxAugmentConfig(), np.random.default_rng(seed)).image
                    != sample.image
                ).any()
                for seed in range(100)
            ]
        )
        for progress in (0.0, 0.5, 1.0)
    ]
    assert shares[0] == 0
    assert 0 < shares[1] < shares[2] < 0.7


@pytest.mark.parametrize(
    "config",
    [
        BoxAugmentConfig(box_probability=0.0),
        BoxAugmentConfig(policies=(tuple((name, 0.0, 9) for name in OPERATIONS),), box_probability=1.0),
    ],
    ids=["boxes", "operations"],
)
def test_zero_probability_changes_nothing(config: BoxAugmentConfig) -> None:
    assert not any(change(textured(CENTRED), config, seed).any() for seed in range(20))


def test_same_seed_same_picture_other_seed_another_and_the_given_one_is_kept() -> None:
    sample = textured(CENTRED, (10, 10, 60, 50), (200, 30, 300, 200))
    before = sample.image.copy()
    sample.image.flags.writeable = False
    config = always("color", "rotate", "brightness", "translate_x")
    config = replace(config, box_probability=1.5)
    pictures = [augment_boxes(sample, 1.0, config, np.random.default_rng(seed)).image for seed in (7, 7, 8, 9, 10)]
    assert (pictures[0] == pictures[1]).all()
    assert any((pictures[0] != other).any() for other in pictures[2:])
    assert (sample.image == before).all()


def test_a_picture_without_boxes_stays_as_it_is() -> None:
    assert not change(textured(), always(*OPERATIONS)).any()


@settings(max_examples=80, deadline=None)
@given(
    boxes=st.lists(st.tuples(*[st.floats(-50, 150, width=32)] * 4), max_size=4),
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    operation=st.sampled_from(OPERATIONS),
    magnitude=st.floats(0, 10),
)
def test_any_box_gives_a_picture_of_the_same_form_and_keeps_the_boxes(
    boxes: list[tuple[float, ...]], shape: tuple[int, int], operation: str, magnitude: float
) -> None:
    sample = textured(*boxes, width=shape[1], height=shape[0])
    augmented = augment_boxes(sample, 1.0, always(operation, magnitude=magnitude), np.random.default_rng(0))
    assert augmented.image.shape == (*shape, 3)
    assert augmented.image.dtype == np.uint8
    assert augmented.boxes.tobytes() == sample.boxes.tobytes()
    assert augmented.labels.tolist() == sample.labels.tolist()
    assert augmented.identifier == sample.identifier


@pytest.mark.parametrize("operation", ["color", "rotate"])
@pytest.mark.parametrize("box", [(0, 0, 30, 30), (290, 210, 320, 240), (310, 100, 340, 140), (100, 100, 103, 104)])
def test_tiny_boxes_and_those_at_the_border_are_changed_too(box: tuple[int, ...], operation: str) -> None:
    assert change(textured(box), always(operation)).any()


def test_a_configuration_survives_json_and_refuses_what_it_does_not_know() -> None:
    sample, config = textured(CENTRED), always("color", "rotate")
    restored = BoxAugmentConfig(**json.loads(json.dumps(asdict(config))))
    assert (change(sample, restored) == change(sample, config)).all()
    with pytest.raises(ValueError, match=r"no box-level operation blur; there are brightness, color, hflip"):
        BoxAugmentConfig(policies=((("blur", 0.5, 3), ("rotate", 0.5, 3)),))
    with pytest.raises(ValueError, match="at least one sub-policy"):
        BoxAugmentConfig(policies=())
