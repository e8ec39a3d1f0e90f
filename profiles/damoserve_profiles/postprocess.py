"""Selection of detections, in pixels of the original image, from candidate boxes."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from damoserve_profiles.imaging import Size
from damoserve_profiles.manifest import Thresholds

MAX_CANDIDATES = 3000
"""Most candidates that are suppressed: it takes quadratic time, with a threshold of 0 and many classes seconds."""


@dataclass(frozen=True)
class Detections:
    """The objects in one image, the best score first."""

    boxes: NDArray[np.float32]
    """x_min, y_min, x_max, y_max; `[M, 4]`."""
    scores: NDArray[np.float32]
    """Scores, 0 to 1; `[M]`."""
    labels: NDArray[np.int64]
    """Indices of the classes; `[M]`."""


def select(
    scores: NDArray[np.float32],
    boxes: NDArray[np.float32],
    thresholds: Thresholds,
    shown: Size,
    image_size: Size,
) -> Detections:
    """Keeps the candidates with at least the threshold's score that class-wise non-maximum suppression leaves.

    `scores` is `[K, C]`; `boxes` is `[K, 4]` in pixels of the network's input, unclipped; `shown` is how much of that
    input shows the image (`imaging.shown_size`). Every (box, class) pair is a candidate of its own, as in the reference
    evaluation. Boxes come back in pixels of the original image, cut to it; those wholly outside are left out.
    """
    # Of the flat array: in two dimensions nonzero takes ten times as long.
    anchors, labels = np.divmod(np.flatnonzero(scores >= thresholds.score), scores.shape[1])
    if len(anchors) > MAX_CANDIDATES:
        best = np.argpartition(scores[anchors, labels], -MAX_CANDIDATES)[-MAX_CANDIDATES:]
        anchors, labels = anchors[best], labels[best]
    candidate_scores = scores[anchors, labels]
    candidates = boxes[anchors]
    keep = _suppress(candidates, candidate_scores, labels, thresholds.nms_iou)
    scale = np.array([image_size.width / shown.width, image_size.height / shown.height] * 2, np.float32)
    limit = np.array([image_size.width, image_size.height] * 2, np.float32)
    visible = np.clip(candidates[keep] * scale, 0, limit)
    inside = np.flatnonzero((visible[:, 2:] > visible[:, :2]).all(axis=1))[: thresholds.max_detections]
    return Detections(visible[inside], candidate_scores[keep][inside], labels[keep][inside])


def _suppress(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], labels: NDArray[np.int64], iou: float
) -> NDArray[np.int64]:
    """Returns the indices of the boxes that are kept, the best score first."""
    if not len(scores):
        return np.empty(0, np.int64)
    # OpenCV keeps classes apart by moving each by the largest coordinate, which fails where there are negative ones.
    corners = boxes[:, :2] - boxes[:, :2].min(axis=0)
    corner_and_size = np.concatenate([corners, boxes[:, 2:] - boxes[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxesBatched(corner_and_size, scores, labels.astype(np.int32), 0.0, iou)
    return np.asarray(kept, np.int64).reshape(-1)
