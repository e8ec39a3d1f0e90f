"""Sample pictures with the detections of every profile, side by side, marked where they differ from the reference's."""

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from damoserve_compress.datasets import Dataset
from damoserve_compress.datasets.subset import Subset
from damoserve_compress.report.document import Gallery, Photograph, slug
from damoserve_compress.report.measure import MeasuredProfile, detections
from damoserve_profiles.postprocess import Detections

SIDE: Final = 416
"""Pixels of the longer side of a drawn picture."""
SAME_IOU: Final = 0.5
"""Two boxes of one label are the same object from this overlap on."""

Colour = tuple[int, int, int]
_LABELS: Final[Sequence[Colour]] = ((40, 150, 70), (120, 70, 190), (0, 140, 170), (150, 110, 0), (90, 90, 90))
_MORE: Final[Colour] = (20, 80, 255)
_LOST: Final[Colour] = (235, 50, 30)


def sample_images(measured: Sequence[MeasuredProfile], dataset: Dataset, count: int) -> list[Gallery]:
    """Draws a row of pictures for each of `count` images, spread evenly over `dataset`, as served by default."""
    indices = np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(int)).tolist()
    images = Subset(dataset, indices)
    found = [detections(item, images, item.manifest.thresholds) for item in measured]
    return [
        Gallery(
            [
                _photograph(
                    f"sample-{row + 1}-{column}-{slug(item.name)}",
                    item,
                    images[row].image,
                    (found[0][row], of_item[row]),
                )
                for column, (item, of_item) in enumerate(zip(measured, found, strict=True), 1)
            ]
        )
        for row in range(len(images))
    ]


def unmatched(first: Detections, second: Detections) -> NDArray[np.bool_]:
    """Marks the detections of `first` that have none of the same label and place in `second`, `[M]`.

    Each takes the free one that it overlaps most, if by `SAME_IOU`; the best score chooses first.
    """
    overlaps = _iou(first.boxes, second.boxes) * (first.labels[:, None] == second.labels[None])
    alone = np.ones(len(first.scores), np.bool_)
    for row in np.argsort(-first.scores, kind="stable") if len(second.scores) else ():
        best = overlaps[row].argmax()
        if overlaps[row, best] >= SAME_IOU:
            alone[row] = False
            overlaps[:, best] = 0
    return alone


def _iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of boxes `[M, 4]` and `[N, 4]`, `[M, N]`."""
    sides = np.minimum(first[:, None, 2:], second[None, :, 2:]) - np.maximum(first[:, None, :2], second[None, :, :2])
    shared = np.prod(np.maximum(sides, 0), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (first, second)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9), np.float32)


def _photograph(
    name: str, item: MeasuredProfile, image: NDArray[np.uint8], found: tuple[Detections, Detections]
) -> Photograph:
    reference, own = found
    more, lost = unmatched(own, reference), unmatched(reference, own)
    scale = SIDE / max(image.shape[:2])
    picture = cv2.resize(
        image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )
    for box, label, extra in zip(own.boxes * scale, own.labels, more, strict=True):
        _rectangle(picture, box, _MORE if extra else _LABELS[label % len(_LABELS)], 3 if extra else 1)
    for box in reference.boxes[lost] * scale:
        _crossed(picture, box)
    written, jpeg = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert written
    caption = f"{item.name}: {_count(own, item.manifest.labels)}"
    if more.any() or lost.any():
        caption += f"; {more.sum()} more, {lost.sum()} fewer"
    return Photograph(name, caption, jpeg.tobytes())


def _count(found: Detections, labels: Sequence[str]) -> str:
    counts = np.bincount(found.labels, minlength=len(labels)).tolist()
    return ", ".join(f"{count} {label}" for label, count in zip(labels, counts, strict=True) if count) or "nothing"


def _rectangle(picture: NDArray[np.uint8], box: NDArray[np.float32], colour: Colour, width: int) -> None:
    left, top, right, bottom = box.round().astype(int).tolist()
    cv2.rectangle(picture, (left, top), (right, bottom), colour, width, cv2.LINE_AA)


def _crossed(picture: NDArray[np.uint8], box: NDArray[np.float32]) -> None:
    """A box that is missing: told by its shape too, not by its colour alone."""
    _rectangle(picture, box, _LOST, 2)
    left, top, right, bottom = box.round().astype(int).tolist()
    cv2.line(picture, (left, top), (right, bottom), _LOST, 2, cv2.LINE_AA)
    cv2.line(picture, (left, bottom), (right, top), _LOST, 2, cv2.LINE_AA)
