"""What counts as the same detections, and what does not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from damoserve_profiles.golden import COARSE, EXACT, Expected, Golden
from damoserve_profiles.postprocess import Detections

BOX = (10.0, 20.0, 50.0, 60.0)
OTHER = (100.0, 20.0, 140.0, 60.0)
Found = tuple[int, float, tuple[float, ...]]


def golden(*detections: tuple[int, float, tuple[float, float, float, float]]) -> Golden:
    expected = tuple(Expected(label=label, score=score, box=box) for label, score, box in detections)
    return Golden(score=0.5, runtime="some", instruction_set="any", detections=expected)


def found(*detections: Found) -> Detections:
    labels, scores, boxes = zip(*detections, strict=True) if detections else ((), (), ())
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int64)
    )


TWO = ((0, 0.9, BOX), (1, 0.8, OTHER))


@given(st.permutations(TWO), st.floats(-0.015, 0.015), st.floats(-0.5, 0.5))
def test_small_differences_in_any_order_are_none(detections: list[Found], score: float, shift: float) -> None:
    moved = [(label, value + score, tuple(side + shift for side in box)) for label, value, box in detections]
    assert golden(*TWO).disagreement(found(*moved), EXACT) is None


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        ([(0, 0.9, BOX)], "nothing is found where label 1 is expected"),
        ([(0, 0.9, BOX), (0, 0.8, OTHER)], "nothing is found where label 1 is expected"),
        ([(0, 0.9, BOX), (1, 0.8, BOX)], "nothing is found where label 1 is expected"),
        ([(0, 0.9, BOX), (1, 0.77, OTHER)], "has the score 0.770, not 0.8"),
        ([*TWO, (2, 0.9, BOX)], "label 2 is found"),
        ([*TWO, (1, 0.8, OTHER)], "label 1 is found"),
        ([], "nothing is found where label 0 is expected"),
    ],
)
def test_differences_are_named(detections: list[Found], message: str) -> None:
    assert message in (golden(*TWO).disagreement(found(*detections), EXACT) or "")


def test_what_is_near_the_threshold_may_be_on_either_side_of_it() -> None:
    near = (0, 0.51, OTHER)
    assert golden(*TWO, near).disagreement(found(*TWO), EXACT) is None
    assert golden(*TWO).disagreement(found(*TWO, near), EXACT) is None


def test_a_moved_box_is_another_one() -> None:
    moved = tuple(side + 3 for side in BOX)  # IoU 0.75
    assert golden((0, 0.9, BOX)).disagreement(found((0, 0.9, moved)), EXACT) is not None
    slightly = tuple(side + 1.5 for side in BOX)  # IoU 0.86
    assert golden((0, 0.9, BOX)).disagreement(found((0, 0.9, slightly)), EXACT) is not None
    assert golden((0, 0.9, BOX)).disagreement(found((0, 0.9, slightly)), COARSE) is None
