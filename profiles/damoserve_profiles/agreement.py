"""The agreement of two profiles of a model: how far they find the same boxes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles.manifest import Manifest
from damoserve_profiles.postprocess import Detections

MATCH_IOU = 0.5
"""Least intersection over union by which two boxes of one class are the same."""


@dataclass(frozen=True)
class BoxCounts:
    """Numbers of boxes of a profile and of its reference."""

    matched: int = 0
    """Boxes that both have."""
    missing: int = 0
    """Boxes that only the reference has."""
    extra: int = 0
    """Boxes that only the profile has."""

    def __add__(self, other: Self) -> "BoxCounts":
        return BoxCounts(self.matched + other.matched, self.missing + other.missing, self.extra + other.extra)

    @property
    def agreement(self) -> float:
        """F1 of the boxes, 0 to 1; 1 where neither has any."""
        boxes = 2 * self.matched + self.missing + self.extra
        return 2 * self.matched / boxes if boxes else 1.0


@dataclass(frozen=True)
class Comparison:
    """The comparison of a profile with its reference in one image."""

    by_label: Mapping[int, BoxCounts]
    """Boxes of each label of which either has any."""
    score_shifts: NDArray[np.float32]
    """Difference of the scores of each matched pair, without the sign; `[matched]`."""


def compare(detections: Detections, reference: Detections) -> Comparison:
    """Compares what a profile and its reference find in an image, both in pixels of that image."""
    pairs = _match(detections, reference)
    matched = detections.labels[pairs[:, 0]]
    labels = np.unique(np.concatenate([detections.labels, reference.labels])).tolist()
    by_label = {}
    for label in labels:
        both = int((matched == label).sum())
        by_label[label] = BoxCounts(
            both, int((reference.labels == label).sum()) - both, int((detections.labels == label).sum()) - both
        )
    return Comparison(by_label, np.abs(detections.scores[pairs[:, 0]] - reference.scores[pairs[:, 1]]))


def reference_of(manifests: Iterable[Manifest]) -> Manifest:
    """Chooses the profile that the others are compared with: the most accurate of those that are not compressed.

    Not the most accurate of all: training after a cut may raise the precision of the smallest, and the question is
    what compression has changed. Where all are compressed, it is the most accurate; of equals the first by name.
    """
    return min(manifests, key=lambda manifest: (_is_compressed(manifest), -manifest.accuracy.ap, manifest.profile))


def _is_compressed(manifest: Manifest) -> bool:
    recipe = manifest.recipe
    cut = recipe.prune is not None or recipe.quantise is not None
    return cut or recipe.target != "cpu" or manifest.precision is not None


def _match(detections: Detections, reference: Detections) -> NDArray[np.int64]:
    """Returns pairs of indices `[M, 2]`, as COCO's evaluation takes them.

    From the best score down, each box takes of the reference's boxes that are left the one that it overlaps most.
    """
    overlap = _pairwise_iou(detections.boxes, reference.boxes)
    overlap[detections.labels[:, None] != reference.labels] = 0
    pairs: list[tuple[int, int]] = []
    for index in np.argsort(-detections.scores, kind="stable").tolist() if overlap.size else ():
        best = int(overlap[index].argmax())
        if overlap[index, best] >= MATCH_IOU:
            pairs.append((index, best))
            overlap[:, best] = 0
    return np.array(pairs, np.int64).reshape(-1, 2)


def _pairwise_iou(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the intersection over union of every two boxes, `[N, M]` for boxes `[N, 4]` and `[M, 4]`."""
    low = np.maximum(one[:, None, :2], other[:, :2])
    high = np.minimum(one[:, None, 2:], other[:, 2:])
    intersection = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1] - intersection
    return np.asarray(intersection / np.maximum(union, np.finfo(np.float32).tiny), np.float32)
