"""Which boxes of two profiles are the same object."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from damoserve_client.types import Box, Detection

# Boxes of the same class that overlap at least so much (intersection over union) are the same object.
SAME_OBJECT_IOU = 0.5
# The same object, but with an edge where the eye sees the difference.
UNMOVED_IOU = 0.85

Kind = Literal["same", "moved", "extra", "missing"]


@dataclass(frozen=True)
class Mark:
    """A detection, and how it relates to those of the reference."""

    detection: Detection
    kind: Kind
    # Of the reference, for `same` and `moved`.
    partner: Detection | None = None


def compare(found: Sequence[Detection], reference: Sequence[Detection]) -> tuple[Mark, ...]:
    """A mark for each of `found` in its order, then one for each of the reference that is missing.

    Every detection, the best score first, takes the box of the reference that it overlaps most and that no other has
    taken.
    """
    free = list(reference)
    marks: dict[int, Mark] = {}
    for index in sorted(range(len(found)), key=lambda index: -found[index].score):
        detection = found[index]
        partner = max(
            (other for other in free if other.label_id == detection.label_id),
            key=lambda other: intersection_over_union(detection.box, other.box),
            default=None,
        )
        overlap = intersection_over_union(detection.box, partner.box) if partner else 0.0
        if partner is None or overlap < SAME_OBJECT_IOU:
            marks[index] = Mark(detection, "extra")
            continue
        free = [other for other in free if other is not partner]
        marks[index] = Mark(detection, "same" if overlap >= UNMOVED_IOU else "moved", partner)
    return (*(marks[index] for index in range(len(found))), *(Mark(other, "missing") for other in free))


def intersection_over_union(one: Box, other: Box) -> float:
    """0 for boxes without area in common."""
    width = min(one.x_max, other.x_max) - max(one.x_min, other.x_min)
    height = min(one.y_max, other.y_max) - max(one.y_min, other.y_min)
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / (_area(one) + _area(other) - common)


def _area(box: Box) -> float:
    return (box.x_max - box.x_min) * (box.y_max - box.y_min)
