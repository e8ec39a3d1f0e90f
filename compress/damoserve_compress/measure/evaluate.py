"""Detections of a whole data set, and their average precision by COCO's rules."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import hotcoco
import numpy as np
from numpy.typing import NDArray

from damoserve_compress.datasets import Dataset
from damoserve_profiles.imaging import Size, resize, shown_size
from damoserve_profiles.manifest import InputSpec, Thresholds
from damoserve_profiles.postprocess import Detections, select

if TYPE_CHECKING:
    from torch import nn

Scores = NDArray[np.float32]
Boxes = NDArray[np.float32]
Detector = Callable[[NDArray[np.uint8]], tuple[Scores, Boxes]]
"""Takes RGB [N, H, W, 3]; returns scores [N, A, C] and boxes [N, A, 4], xyxy in pixels of that input."""

COCO_THRESHOLDS = Thresholds(score=0.05, nms_iou=0.7, max_detections=500)
"""The thresholds of DAMO-YOLO's evaluation of T to L; COCO then counts the best 100 of each image and class."""

SIZES = ("small", "medium", "large")
"""COCO's ranges of area: up to 32 x 32 pixels, up to 96 x 96, and what is larger."""


@dataclass(frozen=True)
class Metrics:
    """Average precision in 0..1 (NaN where no image has a box)."""

    ap: float
    """Mean over IoU 0.50:0.05:0.95 and classes."""
    ap50: float
    ap75: float
    per_class: dict[str, float]
    """The `ap` of each class; classes of which the data set has no box are left out."""
    per_size: dict[str, float]
    """The `ap` of boxes of each of `SIZES`; sizes of which the data set has no box are left out."""
    images: int


def torch_detector(network: "nn.Module") -> Detector:
    """The detector that a torch network in eval mode is; cast and layout as in an exported graph."""
    import torch

    device = next(network.parameters()).device

    @torch.inference_mode()
    def detect(images: NDArray[np.uint8]) -> tuple[Scores, Boxes]:
        # The permuted view is channels-last already, and the cast keeps that.
        scores, boxes = network(torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float())
        return scores.cpu().numpy(), boxes.cpu().numpy()

    return detect


def _batches(dataset: Dataset, spec: InputSpec, batch_size: int) -> Iterator[tuple[NDArray[np.uint8], list[Size]]]:
    for start in range(0, len(dataset), batch_size):
        samples = [dataset[index] for index in range(start, min(start + batch_size, len(dataset)))]
        sizes = [Size(sample.image.shape[1], sample.image.shape[0]) for sample in samples]
        yield np.stack([resize(sample.image, spec.size, spec.resize) for sample in samples]), sizes


def predict(
    detector: Detector, dataset: Dataset, spec: InputSpec, thresholds: Thresholds = COCO_THRESHOLDS, batch_size: int = 8
) -> list[Detections]:
    """Detections of each image of `dataset`, in its order, in pixels of the original image.

    `spec` is the network's input. A torch network goes through `torch_detector`.
    """
    found = []
    for images, sizes in _batches(dataset, spec, batch_size):
        scores, boxes = detector(images)
        for image_scores, image_boxes, original in zip(scores, boxes, sizes, strict=True):
            shown = shown_size(original, spec.size, spec.resize)
            found.append(select(image_scores, image_boxes, thresholds, shown, original))
    return found


def ground_truth(dataset: Dataset) -> hotcoco.COCO:
    """The boxes of `dataset`; images are numbered by their index, categories by their label.

    Reads every sample, so it is worth keeping: whatever is measured on a data set takes it.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(len(dataset)):
        sample = dataset[index]
        height, width = sample.image.shape[:2]
        images.append({"id": index, "width": width, "height": height})
        for (left, top, right, bottom), label in zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True):
            box = [left, top, right - left, bottom - top]
            annotation = {"id": len(annotations) + 1, "image_id": index, "category_id": label, "bbox": box}
            annotations.append(annotation | {"area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": index, "name": name} for index, name in enumerate(dataset.labels)]
    return hotcoco.COCO({"images": images, "annotations": annotations, "categories": categories})


def _result_rows(detections: Sequence[Detections]) -> NDArray[np.float64]:
    """Rows of image index, x, y, width, height, score, label: the array form that `loadRes` takes."""
    rows = [np.empty((0, 7))]
    for index, found in enumerate(detections):
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        image = np.full((len(found.boxes), 1), index)
        rows.append(np.concatenate([image, found.boxes[:, :2], sides, found.scores[:, None], found.labels[:, None]], 1))
    return np.concatenate(rows)


def coco_evaluation(truth: hotcoco.COCO, detections: Sequence[Detections]) -> hotcoco.COCOeval:
    """COCO's box evaluation of `detections`, one entry for each image of `truth`; nothing is computed yet.

    Raises ValueError where their number differs.
    """
    if len(detections) != len(truth.imgs):
        raise ValueError(f"{len(detections)} lists of detections for {len(truth.imgs)} images")
    return hotcoco.COCOeval(truth, truth.loadRes(_result_rows(detections)), "bbox")


def _mean(precision: NDArray[np.float64]) -> float:
    # COCO marks what has no ground truth with -1.
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else float("nan")


def _means(names: Sequence[str], precisions: Iterable[NDArray[np.float64]]) -> dict[str, float]:
    means = {name: _mean(precision) for name, precision in zip(names, precisions, strict=True)}
    return {name: mean for name, mean in means.items() if not np.isnan(mean)}


def average_precision(truth: hotcoco.COCO, detections: Sequence[Detections]) -> Metrics:
    """COCO's box AP of `detections`, one entry for each image of `truth`, which is what `ground_truth` gives.

    Raises ValueError where their number differs.
    """
    evaluation = coco_evaluation(truth, detections)
    evaluation.evaluate()
    evaluation.accumulate()
    # [IoU, recall, class, area, maximum number of detections]: the last maximum is 100.
    results = evaluation.eval
    assert results is not None
    precision = np.asarray(results["precision"])[..., -1]
    overall = precision[..., 0]
    return Metrics(
        ap=_mean(overall),
        ap50=_mean(overall[0]),
        ap75=_mean(overall[5]),
        per_class=_means([truth.cats[label]["name"] for label in range(len(truth.cats))], np.moveaxis(overall, -1, 0)),
        per_size=_means(SIZES, np.moveaxis(precision[..., 1:], -1, 0)),
        images=len(truth.imgs),
    )
