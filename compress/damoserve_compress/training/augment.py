"""Random views of training images: mosaic, mixup, affine maps, colours.

One affine map does stretch, scale, rotation, shear, placement and flips, so every pixel is interpolated once only.

Mosaic follows YOLOv4 (arXiv 2004.10934), mixup arXiv 1710.09412 with equal shares as in YOLOX (arXiv 2107.08430).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from damoserve_compress.datasets import Sample
from damoserve_compress.training.box_augment import BoxAugmentConfig
from damoserve_profiles.imaging import Size, shown_size
from damoserve_profiles.manifest import InputSpec

_GREY_AXIS = np.full((3, 3), 1 / 3, np.float64)
_LUMA = np.tile(np.array([0.299, 0.587, 0.114]), (3, 1))

Probability = Annotated[float, Field(ge=0, le=1)]
Change = Annotated[float, Field(ge=0)]


def _ordered(factors: tuple[float, float]) -> tuple[float, float]:
    if factors[0] > factors[1]:
        raise ValueError(f"the smallest comes first, not {factors}")
    return factors


Factors = Annotated[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], AfterValidator(_ordered)]
"""Smallest and largest."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AugmentConfig:
    horizontal_flip: Probability = 0.5
    vertical_flip: Probability = 0.5
    scale: Factors = (0.7, 1.4)
    """Factor on the image as the network would see it."""
    even_scale: bool = False
    """Factors are drawn evenly, as in the released DAMO-YOLO trainer, not evenly in the logarithm."""
    rotation: Change = 0.0
    """Largest angle in degrees, of the image before it is stretched."""
    shear: Change = 0.0
    """Largest angle in degrees."""
    round_objects: bool = False
    """A turned box is drawn around the turned ellipse that fills it, not around its turned corners, which would leave
    it too large for anything round (Kalra et al., "Towards Rotation Invariance in Object Detection", ICCV 2021)."""
    mosaic: Probability = 0.0
    """Four images side by side, meeting at a random point."""
    mixup: Probability = 0.0
    """The mean of two views, with the boxes of both."""
    mixup_scale: Factors = (0.5, 1.5)
    """`scale` of the second view."""
    brightness: Change = 0.2
    """Largest relative change, as for contrast and saturation."""
    contrast: Change = 0.2
    saturation: Change = 0.3
    hue: Change = 8.0
    """Largest rotation in degrees."""
    boxes: BoxAugmentConfig | None = None
    """Box-level, scale-aware augmentation on top."""
    fill: Annotated[int, Field(ge=0, le=255)] = 114
    min_visible: Probability = 0.25
    """Boxes of which a smaller part of the area is still in the picture are dropped."""
    min_side: Change = 2.0
    """Pixels of the training size; boxes with a shorter side are dropped."""


def augment(
    sample: Sample, draw: Callable[[], Sample], spec: InputSpec, config: AugmentConfig, rng: np.random.Generator
) -> Sample:
    """A random view of `sample` as large as the network's input; the same generator state gives the same view.

    `draw` gives the further images of a mosaic or mixup. Boxes are moved with the picture and cut to it.
    """
    frame = spec.size
    if rng.random() < config.mosaic:
        view = _mosaic([sample, draw(), draw(), draw()], spec, config, rng)
    else:
        view = _window(sample, frame, spec, config, rng)
    if rng.random() < config.mixup:
        view = _mean(view, _window(draw(), frame, spec, replace(config, scale=config.mixup_scale), rng))
    return view


def _mosaic(samples: list[Sample], spec: InputSpec, config: AugmentConfig, rng: np.random.Generator) -> Sample:
    width, height = spec.width, spec.height
    meeting_x = int(rng.integers(width // 4, width - width // 4 + 1))
    meeting_y = int(rng.integers(height // 4, height - height // 4 + 1))
    image = np.empty((height, width, 3), np.uint8)
    boxes, labels = [], []
    columns, rows = ((0, meeting_x), (meeting_x, width)), ((0, meeting_y), (meeting_y, height))
    for sample, (left, right), (top, bottom) in zip(
        samples, 2 * columns, (rows[0], rows[0], rows[1], rows[1]), strict=True
    ):
        window = _window(sample, Size(right - left, bottom - top), spec, config, rng)
        image[top:bottom, left:right] = window.image
        boxes.append(window.boxes + np.array([left, top, left, top], np.float32))
        labels.append(window.labels)
    return Sample(image, np.concatenate(boxes), np.concatenate(labels), samples[0].identifier)


def _mean(first: Sample, second: Sample) -> Sample:
    image = np.asarray(cv2.addWeighted(first.image, 0.5, second.image, 0.5, 0), np.uint8)
    boxes = np.concatenate([first.boxes, second.boxes])
    return Sample(image, boxes, np.concatenate([first.labels, second.labels]), first.identifier)


def _window(sample: Sample, frame: Size, spec: InputSpec, config: AugmentConfig, rng: np.random.Generator) -> Sample:
    """A window on the image, which is as large as the network would see it times a random factor."""
    height, width = sample.image.shape[:2]
    source = Size(width, height)
    shown = shown_size(source, spec.size, spec.resize)
    factor = rng.uniform(*config.scale) if config.even_scale else np.exp(rng.uniform(*np.log(config.scale)))
    matrix = _placement(config, _sides(source), (_sides(shown) * factor, _sides(frame)), rng)
    image = cv2.transform(_warp(sample.image, matrix, frame, config.fill), _colour_matrix(config, rng))
    boxes, keep = _visible(_move_boxes(sample.boxes, matrix, config.round_objects), frame, config)
    return Sample(image, boxes[keep], sample.labels[keep], sample.identifier)


def _sides(size: Size) -> NDArray[np.float64]:
    return np.array([size.width, size.height], np.float64)


def _placement(
    config: AugmentConfig,
    source: NDArray[np.float64],
    target: tuple[NDArray[np.float64], NDArray[np.float64]],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Affine map [2, 3] from an image with the sides `source` to one with those of `target`, somewhere over a frame.

    Anywhere, that is, where it covers the frame, the second of `target`, or lies inside it. All are width and height.
    In edge coordinates: a pixel spans i..i+1.
    """
    extent, frame = target
    slack = frame - extent
    offsets = rng.uniform(np.minimum(slack, 0), np.maximum(slack, 0))
    flips = np.where(rng.random(2) < (config.horizontal_flip, config.vertical_flip), -1.0, 1.0)
    angle = np.deg2rad(rng.uniform(-config.rotation, config.rotation))
    shear = np.tan(np.deg2rad(rng.uniform(-config.shear, config.shear, 2)))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = (flips * extent / source)[:, None] * (turn @ np.array([[1, shear[0]], [shear[1], 1]]))
    # About the centre, so that the picture stays where it was placed however it is turned.
    shift = offsets + extent / 2 - linear @ (source / 2)
    return np.concatenate([linear, shift[:, None]], 1)


def _warp(image: NDArray[np.uint8], matrix: NDArray[np.float64], frame: Size, fill: int) -> NDArray[np.uint8]:
    # OpenCV counts from pixel centres; without this half pixel the picture would shift against its resize().
    centred = matrix.copy()
    centred[:, 2] += matrix[:, :2].sum(1) * 0.5 - 0.5
    sides, grey = (frame.width, frame.height), (fill,) * 3
    warped: NDArray[np.uint8] = cv2.warpAffine(
        image, centred, sides, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=grey
    )
    return warped


def _move_boxes(boxes: NDArray[np.float32], matrix: NDArray[np.float64], round_objects: bool) -> NDArray[np.float32]:
    """Extents [M, 4] of the moved boxes, or of the ellipses that fill them."""
    centres, halves = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    linear = matrix[:, :2]
    moved = centres @ linear.T + matrix[:, 2]
    reach = np.sqrt(halves**2 @ (linear**2).T) if round_objects else halves @ np.abs(linear).T
    return np.concatenate([moved - reach, moved + reach], 1).astype(np.float32)


def _visible(
    boxes: NDArray[np.float32], frame: Size, config: AugmentConfig
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Boxes [M, 4] cut to the frame, and which of them [M] are worth keeping."""
    clipped = boxes.clip(0, np.array([frame.width, frame.height] * 2, np.float32))
    sides, full = clipped[:, 2:] - clipped[:, :2], boxes[:, 2:] - boxes[:, :2]
    keep = (sides.min(1, initial=np.inf) >= config.min_side) & (sides.prod(1) >= config.min_visible * full.prod(1))
    return clipped, keep


def _colour_matrix(config: AugmentConfig, rng: np.random.Generator) -> NDArray[np.float64]:
    """Composes a linear map [3, 4] of RGB: hue turned about the grey axis, then saturation, contrast and brightness."""
    amplitudes = np.array([config.brightness, config.contrast, config.saturation])
    brightness, contrast, saturation = 1 + rng.uniform(-amplitudes, amplitudes)
    angle = np.deg2rad(rng.uniform(-config.hue, config.hue))
    root = np.sqrt(1 / 3)
    cross = np.array([[0, -root, root], [root, 0, -root], [-root, root, 0]])
    rotation = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * _GREY_AXIS
    linear = (saturation * np.eye(3) + (1 - saturation) * _LUMA) @ rotation * contrast * brightness
    shift = np.full((3, 1), 127.5 * (1 - contrast) * brightness)
    return np.concatenate([linear, shift], 1)
