"""How far two profiles of a model find the same boxes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles.manifest import Manifest
from damoserve_profiles.postprocess import Detections

MATCH_IOU = 0.5
"""Boxes of one class that share at least this are the same."""


@dataclass(frozen=True)
class BoxCounts:
    """What became of the boxes of a profile and of its reference."""

    matched: int = 0
    missing: int = 0
    """Those that only the reference has."""
    extra: int = 0
    """Those that only the profile has."""

    def __add__(self, other: Self) -> "BoxCounts":
        return BoxCounts(self.matched + other.matched, self.missing + other.missing, self.extra + other.extra)

    @property
    def agreement(self) -> float:
        """F1 of the boxes, 0 to 1; 1 where neither has any."""
        boxes = 2 * self.matched + self.missing + self.extra
        return 2 * self.matched / boxes if boxes else 1.0


@dataclass(frozen=True)
class Comparison:
    """Of one image."""

    by_label: Mapping[int, BoxCounts]
    """Labels of which neither has a box are left out."""
    score_shifts: NDArray[np.float32]
    """By how much the scores of matched boxes differ, without the sign."""


def compare(found: Detections, reference: Detections) -> Comparison:
    """What a profile finds in an image against what its reference does, both in pixels of the same image."""
    pairs = _match(found, reference)
    matched = found.labels[pairs[:, 0]]
    labels = np.unique(np.concatenate([found.labels, reference.labels])).tolist()
    by_label = {}
    for label in labels:
        both = int((matched == label).sum())
        by_label[label] = BoxCounts(
            both, int((reference.labels == label).sum()) - both, int((found.labels == label).sum()) - both
        )
    return Comparison(by_label, np.abs(found.scores[pairs[:, 0]] - reference.scores[pairs[:, 1]]))


def reference_of(manifests: Iterable[Manifest]) -> Manifest:
    """The profile that the others of a model are compared with: the most accurate of those that are not compressed.

    Not the most accurate of all: training after a cut may raise the precision of the smallest, and the question is
    what compression has changed. Where all are compressed, it is the most accurate; of equals the first by name.
    """
    return min(manifests, key=lambda manifest: (_is_compressed(manifest), -manifest.accuracy.ap, manifest.profile))


def _is_compressed(manifest: Manifest) -> bool:
    recipe = manifest.recipe
    cut = recipe.prune is not None or recipe.quantise is not None
    return cut or recipe.target != "cpu" or manifest.precision is not None


def _match(found: Detections, reference: Detections) -> NDArray[np.int64]:
    """Pairs of indices `[M, 2]`, as COCO's evaluation takes them: from the best score down, each found box takes of
    the reference's boxes that are left the one that it shares most with."""
    shared = _shared(found.boxes, reference.boxes)
    shared[found.labels[:, None] != reference.labels] = 0
    pairs: list[tuple[int, int]] = []
    for index in np.argsort(-found.scores, kind="stable").tolist() if shared.size else ():
        best = int(shared[index].argmax())
        if shared[index, best] >= MATCH_IOU:
            pairs.append((index, best))
            shared[:, best] = 0
    return np.array(pairs, np.int64).reshape(-1, 2)


def _shared(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of every two boxes."""
    low = np.maximum(one[:, None, :2], other[:, :2])
    high = np.minimum(one[:, None, 2:], other[:, 2:])
    intersection = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1] - intersection
    return np.asarray(intersection / np.maximum(union, np.finfo(np.float32).tiny), np.float32)
