"""Suppression and scaling against a plain reading of their definition."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from damoserve_profiles import postprocess
from damoserve_profiles.imaging import ResizeMode, Size, resize, shown_size
from damoserve_profiles.manifest import Thresholds
from damoserve_profiles.postprocess import select

NETWORK = Size(100, 100)


def thresholds(score: float = 0.1, nms_iou: float = 0.5, max_detections: int = 100) -> Thresholds:
    return Thresholds(score=score, nms_iou=nms_iou, max_detections=max_detections)


def iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    area = [float(np.prod(box[2:] - box[:2])) for box in (first, second)]
    return shared / (sum(area) - shared)


def candidates(seed: int, count: int, classes: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    centres, sides = rng.uniform(-5, 105, (count, 2)), rng.uniform(5, 40, (count, 2))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).astype(np.float32)
    scores = rng.permutation(count * classes).reshape(count, classes).astype(np.float32) / np.float32(count * classes)
    return scores, boxes


@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 4))
@settings(max_examples=60)
def test_survivors_are_those_of_greedy_suppression(seed: int, count: int, classes: int) -> None:
    scores, boxes = candidates(seed, count, classes)
    wanted: list[tuple[float, int, int]] = []
    for score, anchor, label in sorted(
        ((float(scores[a, c]), a, c) for a in range(count) for c in range(classes) if scores[a, c] >= 0.1), reverse=True
    ):
        if all(other != label or iou(boxes[kept], boxes[anchor]) <= 0.5 for _, kept, other in wanted):
            wanted.append((score, anchor, label))
    visible = np.all(np.minimum(boxes[:, 2:], 100) > np.maximum(boxes[:, :2], 0), axis=1).tolist()
    wanted = [entry for entry in wanted if visible[entry[1]]]  # the others suppress, but are not in the picture
    found = select(scores, boxes, thresholds(max_detections=1000), NETWORK, NETWORK)
    assert found.labels.tolist() == [label for _, _, label in wanted]
    assert np.allclose(found.scores, [score for score, _, _ in wanted])
    assert np.allclose(found.boxes, boxes[np.array([anchor for _, anchor, _ in wanted], int)].clip(0, 100))


@pytest.mark.parametrize("corners", [[[90, 90, 100, 100], [-14, -14, 4, 4]], [[90, 69, 138, 126], [-31, -35, 14, 7]]])
def test_negative_corners_do_not_mix_classes(corners: list[list[int]]) -> None:
    scores = np.array([[0.9, 0], [0, 0.8]], np.float32)
    boxes = np.array(corners, np.float32)
    assert select(scores, boxes, thresholds(nms_iou=0.3), NETWORK, NETWORK).labels.tolist() == [0, 1]


@given(
    st.builds(Size, st.integers(1, 5000), st.integers(1, 5000)),
    st.builds(Size, st.integers(32, 1280), st.integers(32, 1280)),
    st.sampled_from(["stretch", "fit"]),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_what_was_mapped_into_the_input_comes_back(
    image: Size, network: Size, mode: ResizeMode, shares: list[float]
) -> None:
    shown = shown_size(image, network, mode)
    left, right = sorted(shares[:2])
    top, bottom = sorted(shares[2:])
    assume(right - left > 1e-3 and bottom - top > 1e-3)  # nothing to see of any other
    box = np.array([left, top, right, bottom])
    whole, part = (np.array([size.width, size.height] * 2) for size in (image, shown))
    found = select(np.ones((1, 1), np.float32), (box * part).astype(np.float32)[None], thresholds(), shown, image)
    assert len(found.boxes) == 1
    assert np.allclose(found.boxes, box * whole, rtol=1e-5, atol=1e-5 * max(whole))


@pytest.mark.parametrize("mode", ["stretch", "fit"])
@pytest.mark.parametrize("image", [Size(64, 64), Size(400, 100), Size(90, 300), Size(333, 200), Size(31, 47)])
def test_a_thing_seen_in_the_input_is_found_where_it_is_in_the_image(image: Size, mode: ResizeMode) -> None:
    thing = (slice(image.height // 4, image.height // 2), slice(image.width // 2, image.width))
    pixels = np.zeros((image.height, image.width, 3), np.uint8)
    pixels[thing] = 255
    rows, columns = np.nonzero(resize(pixels, NETWORK, mode)[..., 0] > 127)
    seen = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
    found = select(np.ones((1, 1), np.float32), seen, thresholds(), shown_size(image, NETWORK, mode), image)
    wanted = [image.width // 2, image.height // 4, image.width, image.height // 2]
    a_pixel = max(image.width, image.height) / NETWORK.width
    assert found.boxes.tolist() == [pytest.approx(wanted, abs=max(a_pixel, 1))]


def test_boxes_come_back_in_pixels_of_the_image() -> None:
    scores, boxes = np.array([[0.5]], np.float32), np.array([[-10, 10, 50, 120]], np.float32)
    found = select(scores, boxes, thresholds(), NETWORK, Size(640, 480))
    assert found.boxes.tolist() == [[0, 48, 320, 480]]


def test_thresholds_and_limits() -> None:
    scores = np.array([[0.2], [0.6], [0.4]], np.float32)
    boxes = np.array([[0, 0, 10, 10], [30, 30, 40, 40], [60, 60, 70, 70]], np.float32)
    kept = select(scores, boxes, thresholds(score=float(np.float32(0.4))), NETWORK, NETWORK)
    assert kept.scores.tolist() == [np.float32(0.6), np.float32(0.4)]  # a score equal to the threshold stays
    assert len(select(scores, boxes, thresholds(max_detections=1), NETWORK, NETWORK).scores) == 1
    assert select(scores, boxes, thresholds(score=0.9), NETWORK, NETWORK).boxes.shape == (0, 4)


def test_a_box_outside_the_picture_is_left_out() -> None:
    boxes = np.array(
        [[10, 10, 40, 40], [10, 80, 40, 95]], np.float32
    )  # the second lies in the padding of a fitted image
    found = select(np.ones((2, 1), np.float32), boxes, thresholds(), Size(100, 75), Size(400, 300))
    assert found.boxes.tolist() == [[40, 40, 160, 160]]


def test_a_box_outside_the_picture_takes_no_place_of_the_limit() -> None:
    scores = np.array([[0.9], [0.8], [0.7]], np.float32)
    boxes = np.array([[10, 80, 40, 95], [10, 10, 40, 40], [50, 10, 80, 40]], np.float32)
    found = select(scores, boxes, thresholds(max_detections=1), Size(100, 75), Size(400, 300))
    assert found.boxes.tolist() == [[40, 40, 160, 160]]


def test_of_too_many_candidates_the_best_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so many that NumPy does not sort them all to find these."""
    monkeypatch.setattr(postprocess, "MAX_CANDIDATES", 50)
    corners = 15 * np.array([(x, y) for x in range(6) for y in range(6)], np.float32)
    boxes = np.concatenate([corners, corners + 10], axis=1)
    every = np.random.default_rng(1).permutation(np.linspace(0.2, 0.9, 36 * 60, dtype=np.float32))
    found = select(every.reshape(36, 60), boxes, thresholds(max_detections=1000), NETWORK, NETWORK)
    best = np.argsort(-every)[:50]
    assert found.scores.tolist() == every[best].tolist()
    assert found.labels.tolist() == (best % 60).tolist()
    assert found.boxes.tolist() == boxes[best // 60].tolist()
