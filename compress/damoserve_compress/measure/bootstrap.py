"""A paired bootstrap over images: how far the difference of two models' average precision may be chance.

Images are drawn with replacement, as many as there are and the same for both models, and the difference is computed
anew from each draw; its 2.5th and 97.5th percentiles are the interval (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13). Which detection matches which box does not depend on the other images: they are matched
once, by the library, and a draw only counts each image as often as it was drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import hotcoco
import numpy as np
from numpy.typing import NDArray

from damoserve_compress.measure.evaluate import coco_evaluation
from damoserve_profiles.postprocess import Detections

RESAMPLES = 2000

_RECALLS = np.linspace(0, 1, 101)  # the points at which COCO reads the precision
_AT_ONCE = 64  # draws; keeps the arrays of COCO's largest class within some 100 MB


@dataclass(frozen=True)
class Interval:
    """A difference of the whole data set, and the 95 % interval around it."""

    value: float
    lower: float
    upper: float

    def __str__(self) -> str:
        """Writes the interval in points, as AP is usually written."""
        return f"{100 * self.value:+.2f} ({100 * self.lower:+.2f} to {100 * self.upper:+.2f})"


@dataclass(frozen=True)
class Difference:
    """The gain of a second model over a first, as a fraction of 1."""

    ap: Interval
    ap50: Interval
    resamples: int
    seed: int


@dataclass(frozen=True, eq=False)
class ClassMatches:
    """The D detections of one class in N images, by falling score."""

    images: NDArray[np.int64]
    """Index of each detection's image, D."""
    matched: NDArray[np.bool_]
    """True for detections that match a box, 10 x D: a row for each of COCO's ten IoU thresholds."""
    boxes: NDArray[np.int64]
    """The number of boxes of the class in each image, N."""


def match(truth: hotcoco.COCO, detections: Sequence[Detections]) -> list[ClassMatches]:
    """The detections of each class of which there is a box. Raises ValueError as `coco_evaluation`."""
    evaluation = coco_evaluation(truth, detections)
    evaluation.params.area_rng, evaluation.params.area_rng_lbl = [[0, 1e10]], ["all"]
    evaluation.evaluate()
    # One entry for each image and class that has anything. Among equal scores COCO takes the earlier image first.
    entries = sorted(filter(None, evaluation.eval_imgs), key=itemgetter("category_id", "image_id"))
    classes = []
    for _, group in groupby(entries, itemgetter("category_id")):
        of_class = list(group)
        images = np.array([entry["image_id"] for entry in of_class])
        boxes = np.bincount(images, [len(entry["gtIds"]) for entry in of_class], len(detections)).astype(np.int64)
        if boxes.any():
            scores = np.concatenate([entry["dtScores"] for entry in of_class])
            matched = np.concatenate([np.array(entry["dtMatched"], np.bool_) for entry in of_class], axis=1)
            order = np.argsort(-scores, kind="stable")
            images = np.repeat(images, [len(entry["dtScores"]) for entry in of_class])
            classes.append(ClassMatches(images[order], matched[:, order], boxes))
    return classes


def drawn_precision(classes: Sequence[ClassMatches], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """COCO's AP of R draws at each IoU threshold, R x 10, where image i is counted `counts[r, i]` times (R x N).

    Classes of which no box was drawn are left out of the mean; without any box it is 0.
    """
    total = np.zeros((len(counts), 10))
    present = np.zeros((len(counts), 1))
    for matches in classes:
        boxes = counts @ matches.boxes
        total += _class_precision(matches, counts, np.maximum(boxes, 1))
        present += (boxes > 0)[:, None]
    return total / np.maximum(present, 1)


def _class_precision(matches: ClassMatches, counts: NDArray[np.int64], boxes: NDArray[np.int64]) -> NDArray[np.float64]:
    weights = counts[:, matches.images]
    seen = weights.cumsum(1)
    result = np.empty((len(counts), len(matches.matched)))
    for threshold, matched in enumerate(matches.matched):
        # Recall rises, and the precision that COCO reads is found, at detections that match: the others need not be
        # looked at.
        found = weights[:, matched].cumsum(1)
        precision = found / np.maximum(seen[:, matched], 1)
        best_after = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        points = np.searchsorted(_RECALLS, found / boxes[:, None], side="right")
        reached = np.diff(points, axis=1, prepend=0)
        result[:, threshold] = (best_after * reached).sum(1) / len(_RECALLS)
    return result


def compare(
    truth: hotcoco.COCO,
    first: Sequence[Detections],
    second: Sequence[Detections],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Compares two models' detections, which have an entry for every image of `truth` each.

    Time and memory grow with resamples times detections; a data set as large as COCO's validation set takes minutes.
    Raises ValueError where the numbers of entries differ and where no image has a box.
    """
    models = match(truth, first), match(truth, second)
    if not all(models):
        raise ValueError("no image has a box: there is nothing to compare")

    def difference(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        before, after = (drawn_precision(classes, counts) for classes in models)
        return after - before

    rng, images = np.random.default_rng(seed), len(truth.imgs)
    shares = np.full(images, 1 / images)
    sizes = [min(_AT_ONCE, resamples - start) for start in range(0, resamples, _AT_ONCE)]
    drawn = np.concatenate([difference(rng.multinomial(images, shares, size)) for size in sizes])
    [whole] = difference(np.ones((1, images), np.int64))
    return Difference(
        ap=_interval(whole.mean(), drawn.mean(1)),
        ap50=_interval(whole[0], drawn[:, 0]),
        resamples=resamples,
        seed=seed,
    )


def _interval(value: np.float64, drawn: NDArray[np.float64]) -> Interval:
    lower, upper = np.percentile(drawn, (2.5, 97.5))
    return Interval(float(value), float(lower), float(upper))
