"""Average precision against pycocotools, and detections of a whole data set."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from damoserve_compress.datasets import Sample
from damoserve_compress.measure.evaluate import COCO_THRESHOLDS, average_precision, ground_truth, predict
from damoserve_profiles.manifest import InputSpec
from damoserve_profiles.postprocess import Detections
from tests.support.compress.random_detections import Listed, all_found, as_found, near_misses, random_dataset


def mean(precision: NDArray[np.float64]) -> float:
    return float(precision[precision > -1].mean())


def oracle(dataset: Listed, detections: list[Detections]) -> NDArray[np.float64]:
    """Precision [IoU, recall, class, area] by pycocotools, from annotations written out here."""
    annotations: list[dict[str, Any]] = []
    rows: list[list[float]] = []
    for image in range(len(dataset)):
        for (left, top, right, bottom), label in zip(
            dataset[image].boxes.tolist(), dataset[image].labels.tolist(), strict=True
        ):
            sides = [right - left, bottom - top]
            box = {"id": len(annotations) + 1, "image_id": image, "category_id": label, "bbox": [left, top, *sides]}
            annotations.append(box | {"area": sides[0] * sides[1], "iscrowd": 0})
        found = detections[image]
        for (left, top, right, bottom), score, label in zip(
            found.boxes.tolist(), found.scores, found.labels, strict=True
        ):
            rows.append([image, left, top, right - left, bottom - top, score, label])
    truth = COCO()
    images = [{"id": index, "width": 200, "height": 200} for index in range(len(dataset))]
    truth.dataset = {"images": images, "annotations": annotations, "categories": [{"id": i} for i in range(3)]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(np.array(rows)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision: NDArray[np.float64] = evaluation.eval["precision"][..., -1]
    return precision


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dataset = random_dataset(rng)
    detections = near_misses(rng, dataset)
    metrics, precision = average_precision(ground_truth(dataset), detections), oracle(dataset, detections)
    overall = precision[..., 0]
    assert 0.05 < metrics.ap < 0.95
    assert metrics.ap == pytest.approx(mean(overall), abs=1e-9)
    assert (metrics.ap50, metrics.ap75) == pytest.approx((mean(overall[0]), mean(overall[5])), abs=1e-9)
    by_class = {name: mean(overall[..., index]) for index, name in enumerate("abc")}
    assert metrics.per_class == pytest.approx(by_class, abs=1e-9)
    by_size = {name: mean(precision[..., index]) for index, name in enumerate(("small", "medium", "large"), 1)}
    assert metrics.per_size == pytest.approx(by_size, abs=1e-9)


def test_perfect_detections_give_one_and_none_give_zero() -> None:
    dataset = random_dataset(np.random.default_rng(1))
    perfect = average_precision(ground_truth(dataset), all_found(dataset))
    assert (perfect.ap, perfect.ap50, perfect.ap75, perfect.images) == (*[pytest.approx(1)] * 3, 12)
    assert perfect.per_class == {"a": pytest.approx(1), "b": pytest.approx(1), "c": pytest.approx(1)}
    nothing = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
    assert average_precision(ground_truth(dataset), [nothing] * len(dataset)).ap == 0


def test_classes_and_sizes_without_boxes_have_no_precision() -> None:
    one = Sample(np.zeros((120, 160, 3), np.uint8), np.array([[1, 2, 30, 40]], np.float32), np.array([1]), 0)
    metrics = average_precision(ground_truth(Listed([one])), [as_found(one)])
    assert metrics.per_class == {"b": pytest.approx(1)}
    assert metrics.per_size == {"medium": pytest.approx(1)}
    assert metrics.ap == pytest.approx(1)


def test_every_image_needs_its_detections() -> None:
    with pytest.raises(ValueError, match="0 lists of detections for 12 images"):
        average_precision(ground_truth(random_dataset(np.random.default_rng(0))), [])


def test_predict_returns_pixels_of_each_original_in_order() -> None:
    shapes = [(120, 160), (64, 64), (30, 90), (200, 100), (48, 32)]
    samples = [
        Sample(np.full((*shape, 3), 10 * index, np.uint8), np.empty((0, 4), np.float32), np.empty(0, np.int64), index)
        for index, shape in enumerate(shapes)
    ]
    batches = []

    def detector(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Finds the lower right quarter in class 1, with the brightness as the score, and one thing below threshold."""
        batches.append(images.shape)
        scores = np.zeros((len(images), 2, 3), np.float32)
        scores[:, 0, 1] = 0.1 + images[:, 0, 0, 0] / 255
        scores[:, 1, 2] = COCO_THRESHOLDS.score - 0.01
        return scores, np.tile(np.array([32, 32, 64, 64], np.float32), (len(images), 2, 1))

    found = predict(detector, Listed(samples), InputSpec(width=64, height=64), batch_size=2)
    assert batches == [(2, 64, 64, 3), (2, 64, 64, 3), (1, 64, 64, 3)]
    for index, ((height, width), detections) in enumerate(zip(shapes, found, strict=True)):
        assert detections.boxes.tolist() == [pytest.approx([width / 2, height / 2, width, height])]
        assert detections.labels.tolist() == [1]
        assert detections.scores[0] == pytest.approx(0.1 + 10 * index / 255)


@pytest.mark.parametrize(("height", "width"), [(120, 160), (160, 40)])
def test_predict_maps_back_from_fitted_images(height: int, width: int) -> None:
    blank = np.full((height, width, 3), 255, np.uint8)
    sample = Sample(blank, np.empty((0, 4), np.float32), np.empty(0, np.int64), 0)

    def detector(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Finds what is not padding."""
        rows, columns = np.nonzero(images[0].any(axis=2))
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert box[2] * box[3] < 64 * 64
        return np.ones((1, 1, 3), np.float32), np.array([[box]], np.float32)

    [found] = predict(detector, Listed([sample]), InputSpec(width=64, height=64, resize="fit"))
    assert found.boxes.tolist() == [[0, 0, width, height]] * 3
