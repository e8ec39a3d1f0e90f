"""The golden image beside a built profile: every engine has to find again what was found in it at the build.

`golden.json` and the image that it names are listed in the manifest's `files` like the model itself. Profiles that were
built before there were golden images have none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from damoserve_profiles.imaging import ImageError, Size, decode, resize, shown_size
from damoserve_profiles.manifest import Count, FileName, Manifest
from damoserve_profiles.postprocess import Detections, select
from damoserve_profiles.recipe import Fraction
from damoserve_profiles.repository import FileMismatch, ProfileFolder

GOLDEN_FILE = "golden.json"
GOLDEN_IMAGE = "golden.png"

Run = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Function of an engine: images `[N, height, width, 3]` to scores `[N, K, C]` and boxes `[N, K, 4]`."""


@dataclass(frozen=True)
class Tolerance:
    """The bounds within which a detection is the same."""

    score: float
    """Largest difference of the scores."""
    iou: float
    """Least intersection over union of the boxes."""


EXACT = Tolerance(score=0.02, iou=0.9)
"""Tolerance for profiles in float32."""
COARSE = Tolerance(score=0.05, iou=0.8)
"""Tolerance for profiles of fewer bits: over a dozen scenes of the bundled ladder, runtimes and instruction sets
differed by up to 0.022 in score and 0.89 in IoU, in float32 by less than 0.0001."""


def tolerance(manifest: Manifest) -> Tolerance:
    """Returns the tolerance for the results of a profile in another runtime, or on another processor."""
    recipe = manifest.recipe
    full = recipe.quantise is None and recipe.target == "cpu" and manifest.precision is None
    return EXACT if full else COARSE


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Expected(_Strict):
    """One detection of a golden image."""

    label: Count
    score: Fraction
    box: tuple[float, float, float, float]
    """x_min, y_min, x_max, y_max in pixels of the image."""


class Golden(_Strict):
    """The golden image of a profile, and the detections in it."""

    image: FileName = GOLDEN_IMAGE
    """Name of the image file, beside the manifest."""
    score: Fraction
    """Least score of the detections."""
    runtime: str
    """Runtime in which the detections were recorded."""
    instruction_set: str
    """Instruction set of the processor on which they were."""
    detections: Annotated[tuple[Expected, ...], Field(min_length=1)]

    def disagreement(self, detections: Detections, tolerance: Tolerance) -> str | None:
        """Says what differs, for the log; returns None if nothing does.

        A detection that is within the tolerance of the threshold may as well be on its other side.
        """
        certain = self.score + tolerance.score
        left = list(range(len(detections.scores)))
        for expected in self.detections:
            match = _closest(expected, detections, left)
            if match is None or _iou(expected.box, detections.boxes[match]) < tolerance.iou:
                if expected.score >= certain:
                    return f"nothing is found where label {expected.label} is expected, at {expected.box}"
                continue
            left.remove(match)
            score = float(detections.scores[match])
            if abs(score - expected.score) > tolerance.score:
                return f"label {expected.label} at {expected.box} has the score {score:.3f}, not {expected.score}"
        for index in left:
            if detections.scores[index] >= certain:
                box = detections.boxes[index].tolist()
                return f"label {detections.labels[index]} is found at {box}, where none is expected"
        return None


def read_golden(folder: ProfileFolder, manifest: Manifest) -> tuple[Golden, NDArray[np.uint8]] | None:
    """Reads the detections and the image, RGB, of a verified profile; None if it has none. Raises FileMismatch."""
    if GOLDEN_FILE not in manifest.files:
        return None
    path = folder.path / GOLDEN_FILE
    try:
        golden = Golden.model_validate_json(path.read_bytes())
        return golden, decode((folder.path / golden.image).read_bytes())
    except (OSError, ValidationError, ImageError) as error:
        raise FileMismatch(f"{path} has no image and detections; build the profile again: {error}") from error


def detect(run: Run, image: NDArray[np.uint8], manifest: Manifest, score: float, copies: int = 1) -> list[Detections]:
    """Detects the objects in each of some `copies` of an image that are computed together, from this `score` on."""
    size, mode = manifest.input.size, manifest.input.resize
    shape = Size(image.shape[1], image.shape[0])
    thresholds = manifest.thresholds.model_copy(update={"score": score})
    batch = np.repeat(resize(image, size, mode)[None], copies, axis=0)
    return [
        select(scores, boxes, thresholds, shown_size(shape, size, mode), shape)
        for scores, boxes in zip(*run(batch), strict=True)
    ]


def _closest(expected: Expected, detections: Detections, left: list[int]) -> int | None:
    same = [index for index in left if detections.labels[index] == expected.label]
    return max(same, key=lambda index: _iou(expected.box, detections.boxes[index]), default=None)


def _iou(one: tuple[float, float, float, float], other: NDArray[np.float32]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, float(width)) * max(0.0, float(height))
    areas = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return shared / (float(areas) - shared) if shared else 0.0
