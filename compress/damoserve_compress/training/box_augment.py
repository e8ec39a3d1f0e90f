"""Box-level scale-aware augmentation: boxes recoloured or moved in place, blended into the picture by Gaussians.

After Chen et al., "Scale-aware Automatic Augmentation for Object Detection" (CVPR 2021, arXiv 2103.17220), with the
policy that DAMO-YOLO trains with. A sub-policy is drawn for each picture. Each of its operations is done with its
probability times the share of the training done, and then on some of the boxes only:

    result = weight * operation(picture) + (1 - weight) * picture
    weight = exp(-dx^2 / (2 sx^2) - dy^2 / (2 sy^2)),  sx : sy = box width : box height,  2 pi sx sy = area

with dx, dy from the box's centre. `area` grows and shrinks with the box only for large ones: a small box takes its
surroundings along. Two searched numbers serve twice in the reference code, and do here: 7:5:1 are positions in a table
of area ratios (6, 2 and 0.4) and are the odds of the three sizes to be recoloured.

Three things differ from the reference code. Geometric operations keep every box: a translation moves what is in the
box by a share of its side, where the reference pastes a copy up to 120 pixels away and adds a box for it. They fade out
past the edge of the box as the colours do, as the paper has it, where the reference cuts them off at 46 % of their
weight. Overlapping boxes are changed one after the other instead of by one summed weight.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat
from pydantic.dataclasses import dataclass as checked_dataclass

from damoserve_compress.datasets import Sample

_Pixels = NDArray[np.uint8]
_Reals = NDArray[np.float64]
_Step = tuple[str, Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=10)]]
_Three = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
_Change = Callable[[_Pixels, _Reals, _Reals], _Pixels]
"""A change of a window, given the centre of the box in it and the sides of the box."""
_Enhancer = type[ImageEnhance.Color | ImageEnhance.Brightness | ImageEnhance.Sharpness]

_REACH = 3.5
"""Standard deviations past which a full change of 255 is less than one grey level."""
_FULL_MAGNITUDE = 10.0
_REFERENCE_SIDE = 800.0
"""Shorter side in pixels of the pictures for which the searched areas hold."""


def _enhance(enhancer: _Enhancer, window: _Pixels, strength: float) -> _Pixels:
    return np.asarray(enhancer(Image.fromarray(window)).enhance(0.1 + 1.8 * strength))


def _solarize_add(window: _Pixels, strength: float) -> _Pixels:
    table = np.arange(256)
    table[:128] += round(110 * strength)
    brightened: _Pixels = cv2.LUT(window, table.clip(0, 255).astype(np.uint8))
    return brightened


def _rotation(strength: float) -> _Reals:
    cosine, sine = math.cos(math.radians(30 * strength)), math.sin(math.radians(30 * strength))
    return np.array([[cosine, -sine, 0], [sine, cosine, 0]])


# By strength, the magnitude as a share of the full one.
_COLOURS: dict[str, Callable[[_Pixels, float], _Pixels]] = {
    "color": partial(_enhance, ImageEnhance.Color),
    "brightness": partial(_enhance, ImageEnhance.Brightness),
    "sharpness": partial(_enhance, ImageEnhance.Sharpness),
    "solarize_add": _solarize_add,
}
# Affine maps [2, 3] about the centre of a box; the last column counts in sides of the box.
_MOVES: dict[str, Callable[[float], _Reals]] = {
    "hflip": lambda _: np.array([[-1.0, 0, 0], [0, 1, 0]]),
    "rotate": _rotation,
    "shear_x": lambda strength: np.array([[1, math.tan(math.radians(15 * strength)), 0], [0, 1, 0]]),
    "translate_x": lambda strength: np.array([[1, 0, strength / 4], [0, 1, 0]]),
    "translate_y": lambda strength: np.array([[1, 0, 0], [0, 1, strength / 4]]),
}


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class BoxAugmentConfig:
    """The policy, sizes and odds that DAMO-YOLO trains with.

    Raises ValueError for an unknown operation and without a sub-policy.
    """

    policies: tuple[tuple[_Step, ...], ...] = (
        (("color", 0.4, 2), ("translate_x", 0.4, 4)),
        (("brightness", 0.2, 4), ("rotate", 0.4, 2)),
        (("sharpness", 0.4, 2), ("shear_x", 0.2, 6)),
        (("solarize_add", 0.2, 2), ("hflip", 0.5, 1)),
        (("color", 0.0, 8), ("translate_y", 0.2, 8)),
    )
    """Sub-policies; each operation has a probability at the end of the training and a magnitude of 0 to 10.

    At 10, colours are enhanced by 1.9 (at 0 by 0.1), dark values rise by 110, turns are 30 degrees, shears 15 degrees,
    and translations a quarter of the side of the box, which leaves it an IoU of 0.6 with what it holds. The sense of
    the geometric ones is drawn.
    """
    box_probability: NonNegativeFloat = 0.3
    """The probability of a box to be changed, times the part that its size has of the odds below."""
    colour_odds: _Three = (7, 5, 1)
    """The odds of small, medium and large boxes."""
    geometric_odds: _Three = (3, 3, 3)
    area_ratios: _Three = (6, 2, 0.4)
    """Area under the weight of a colour operation in that of a typical small, medium or large box.

    The typical areas are the first limit, the middle of the first two, and the third limit or the box if it is larger.
    A geometric operation has the area of its box.
    """
    area_limits: _Three = (2048, 10240, 51200)
    """Square pixels: small below the first, medium below the second; times the picture's shorter side over 800."""

    def __post_init__(self) -> None:
        known = sorted((*_COLOURS, *_MOVES))
        unknown = sorted({name for policy in self.policies for name, _, _ in policy}.difference(known))
        if unknown:
            raise ValueError(f"no box-level operation {', '.join(unknown)}; there are {', '.join(known)}")
        if not self.policies:
            raise ValueError("box-level augmentation needs at least one sub-policy")


@dataclass(frozen=True, eq=False)
class _Boxes:
    """The boxes of a picture that have an area: `centres` and `sides` [M, 2] in pixels, `sizes` [M] of 0, 1 and 2."""

    centres: _Reals
    sides: _Reals
    sizes: NDArray[np.int64]
    areas: _Reals
    colour_areas: _Reals
    """Under the weights of colour operations."""


def _measure(sample: Sample, config: BoxAugmentConfig) -> _Boxes:
    height, width = sample.image.shape[:2]
    corners = sample.boxes.astype(np.float64).reshape(-1, 2, 2).clip(0, (width, height))
    corners = corners[(corners[:, 0] < corners[:, 1]).all(1)]
    sides = corners[:, 1] - corners[:, 0]
    areas = sides.prod(1)
    limits = np.array(config.area_limits) * min(height, width) / _REFERENCE_SIDE
    sizes = np.searchsorted(limits[:2], areas, side="right")
    typical = np.choose(sizes, (limits[0], limits[:2].mean(), np.maximum(limits[2], areas)))
    return _Boxes(corners.mean(1), sides, sizes, areas, np.array(config.area_ratios)[sizes] * typical)


def _profile(centre: float, deviation: float, length: int) -> tuple[slice, _Reals]:
    """The pixels of one axis within reach of `centre`, and their weights."""
    start = max(0, math.floor(centre - _REACH * deviation))
    stop = min(length, math.ceil(centre + _REACH * deviation))
    return slice(start, stop), np.exp(-(((np.arange(start, stop) + 0.5 - centre) / deviation) ** 2) / 2)


def _move(move: _Reals, window: _Pixels, centre: _Reals, sides: _Reals) -> _Pixels:
    # OpenCV counts from pixel centres.
    fixed = centre - 0.5
    shift = fixed - move[:, :2] @ fixed + move[:, 2] * sides
    matrix = np.column_stack([move[:, :2], shift])
    moved: _Pixels = cv2.warpAffine(window, matrix, window.shape[1::-1], borderMode=cv2.BORDER_REFLECT_101)
    return moved


def _change(name: str, strength: float, rng: np.random.Generator) -> _Change:
    if name in _COLOURS:
        return lambda window, *_: _COLOURS[name](window, strength)
    return partial(_move, _MOVES[name](strength * rng.choice((-1, 1))))


def _blend(image: _Pixels, centre: _Reals, sides: _Reals, area: float, change: _Change) -> None:
    """Change `image` in place around `centre`, by a weight with the given `area` under it."""
    deviations = sides * math.sqrt(area / (2 * math.pi * sides.prod()))
    columns, across = _profile(centre[0], deviations[0], image.shape[1])
    rows, down = _profile(centre[1], deviations[1], image.shape[0])
    weights = np.outer(down, across).astype(np.float32)
    window = image[rows, columns]
    changed = change(window, centre - (columns.start, rows.start), sides)
    image[rows, columns] = cv2.blendLinear(changed, window, weights, 1 - weights)


def augment_boxes(sample: Sample, progress: float, config: BoxAugmentConfig, rng: np.random.Generator) -> Sample:
    """`sample` with the content of some of its boxes changed; boxes and labels stay as they are.

    `progress` is the share of the training done, 0 to 1. The same generator state gives the same picture; the given
    one is not written to.
    """
    image = sample.image.copy()
    boxes = _measure(sample, config)
    for name, probability, magnitude in config.policies[rng.integers(len(config.policies))]:
        if rng.random() >= probability * progress:
            continue
        odds, areas = (
            (config.colour_odds, boxes.colour_areas) if name in _COLOURS else (config.geometric_odds, boxes.areas)
        )
        chances = config.box_probability * np.array(odds) / sum(odds)
        change = _change(name, magnitude / _FULL_MAGNITUDE, rng)
        for index in np.flatnonzero(rng.random(len(areas)) < chances[boxes.sizes]):
            _blend(image, boxes.centres[index], boxes.sides[index], areas[index], change)
    return replace(sample, image=image)
