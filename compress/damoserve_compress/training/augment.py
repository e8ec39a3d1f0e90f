"""Random views of a training image.

One affine map does stretch, scale, placement and flips, so every pixel is interpolated once only.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from damoserve_compress.datasets import Sample

_GREY_AXIS = np.full((3, 3), 1 / 3, np.float64)
_LUMA = np.tile(np.array([0.299, 0.587, 0.114]), (3, 1))


@dataclass(frozen=True)
class AugmentConfig:
    horizontal_flip: float = 0.5
    """Probability, as for the vertical one."""
    vertical_flip: float = 0.5
    scale: tuple[float, float] = (0.7, 1.4)
    """Factor on the image stretched to the training size; drawn evenly in its logarithm."""
    brightness: float = 0.2
    """Largest relative change, as for contrast and saturation."""
    contrast: float = 0.2
    saturation: float = 0.3
    hue: float = 8.0
    """Largest rotation in degrees."""
    fill: int = 114
    min_visible: float = 0.25
    """Boxes of which a smaller part of the area is still in the picture are dropped."""
    min_side: float = 2.0
    """Pixels of the training size; boxes with a shorter side are dropped."""


def _placement(
    config: AugmentConfig, source: tuple[int, int], size: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Affine map [2, 3] from (width, height) `source` to the square, in edge coordinates (a pixel spans i..i+1)."""
    scale = np.exp(rng.uniform(*np.log(config.scale)))
    extent = size * scale
    low, high = min(0.0, size - extent), max(0.0, size - extent)
    offsets = rng.uniform(low, high, size=2)
    flips = rng.random(2) < (config.horizontal_flip, config.vertical_flip)
    matrix = np.zeros((2, 3))
    for axis in range(2):
        factor = extent / source[axis]
        matrix[axis, axis] = -factor if flips[axis] else factor
        matrix[axis, 2] = offsets[axis] + (extent if flips[axis] else 0.0)
    return matrix


def _warp(image: NDArray[np.uint8], matrix: NDArray[np.float64], size: int, fill: int) -> NDArray[np.uint8]:
    # OpenCV counts from pixel centres; without this half pixel the picture would shift against its resize().
    centred = matrix.copy()
    centred[:, 2] += matrix[:, :2].sum(1) * 0.5 - 0.5
    warped: NDArray[np.uint8] = cv2.warpAffine(
        image, centred, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=(fill,) * 3
    )
    return warped


def _move_boxes(boxes: NDArray[np.float32], matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    corners = boxes.reshape(-1, 2, 2) * matrix[[0, 1], [0, 1]] + matrix[:, 2]
    return np.concatenate([corners.min(1), corners.max(1)], 1).astype(np.float32)


def _visible(
    boxes: NDArray[np.float32], size: int, config: AugmentConfig
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Boxes [M, 4] cut to the square, and which of them [M] are worth keeping."""
    clipped = boxes.clip(0, size)
    sides, full = clipped[:, 2:] - clipped[:, :2], boxes[:, 2:] - boxes[:, :2]
    keep = (sides.min(1, initial=np.inf) >= config.min_side) & (sides.prod(1) >= config.min_visible * full.prod(1))
    return clipped, keep


def _colour_matrix(config: AugmentConfig, rng: np.random.Generator) -> NDArray[np.float64]:
    """One linear map [3, 4] of RGB that turns hue about the grey axis, then saturation, contrast and brightness."""
    amplitudes = np.array([config.brightness, config.contrast, config.saturation])
    brightness, contrast, saturation = 1 + rng.uniform(-amplitudes, amplitudes)
    angle = np.deg2rad(rng.uniform(-config.hue, config.hue))
    root = np.sqrt(1 / 3)
    cross = np.array([[0, -root, root], [root, 0, -root], [-root, root, 0]])
    rotation = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * _GREY_AXIS
    linear = (saturation * np.eye(3) + (1 - saturation) * _LUMA) @ rotation * contrast * brightness
    shift = np.full((3, 1), 127.5 * (1 - contrast) * brightness)
    return np.concatenate([linear, shift], 1)


def augment(sample: Sample, size: int, config: AugmentConfig, rng: np.random.Generator) -> Sample:
    """A random view of `sample`, `size` x `size`; the same generator state gives the same view.

    Boxes are moved with the picture and cut to it.
    """
    height, width = sample.image.shape[:2]
    matrix = _placement(config, (width, height), size, rng)
    colours = _colour_matrix(config, rng)
    image = cv2.transform(_warp(sample.image, matrix, size, config.fill), colours)
    boxes, keep = _visible(_move_boxes(sample.boxes, matrix), size, config)
    return Sample(image=image, boxes=boxes[keep], labels=sample.labels[keep], identifier=sample.identifier)
