"""Pictures as annotated, and the data set made of them: what the formats share.

A reader scans its annotation files into a `Scan`, which keeps every fault it met and every box as it was given.
`PictureDataset` refuses a scan with errors; `check` reports them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from damoserve_compress.datasets.dataset import Sample
from damoserve_compress.datasets.errors import AnnotationsError, MissingPicture, UnreadablePicture, WrongSize
from damoserve_compress.datasets.findings import Finding, errors_in
from damoserve_profiles.imaging import Size, decode
from damoserve_profiles.manifest import DataSource


class Placement(IntEnum):
    """The place of a box in its picture. Boxes of the first two kinds are kept."""

    INSIDE = 0
    CLIPPED = 1
    OUTSIDE = 2
    EMPTY = 3


class BoxAnnotation(NamedTuple):
    """A box as given: (left, top, right, bottom) in pixels, finite, and the id that a user finds it by, if any."""

    corners: tuple[float, float, float, float]
    label: int
    annotation: int | str | None


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as annotated: M boxes, before any is cut or dropped.

    ``identifier`` is unique within the scan; ``corners`` is M x 4 as in `BoxAnnotation`, ``labels`` and ``annotations``
    are M.
    """

    identifier: int
    path: Path
    size: Size
    corners: NDArray[np.float64]
    labels: NDArray[np.int64]
    annotations: tuple[int | str | None, ...]

    @classmethod
    def from_annotations(
        cls, identifier: int, path: Path, size: Size, annotations: Sequence[BoxAnnotation]
    ) -> "Picture":
        corners = np.array([box.corners for box in annotations], np.float64).reshape(-1, 4)
        labels = np.array([box.label for box in annotations], np.int64)
        return cls(identifier, path, size, corners, labels, tuple(box.annotation for box in annotations))

    def clipped_boxes(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The boxes cut at the frame, M x 4, and the `Placement` of each, M."""
        with np.errstate(over="ignore"):  # beyond float32 is infinity, which is cut as well
            corners = self.corners.astype(np.float32)
        boxes = np.clip(corners, 0, np.array([self.size.width, self.size.height] * 2, np.float32))
        placements = np.where((boxes == corners).all(1), Placement.INSIDE, Placement.CLIPPED)
        placements[~_has_area(boxes)] = Placement.OUTSIDE
        placements[~_has_area(corners)] = Placement.EMPTY
        return boxes, placements

    def read_image(self) -> NDArray[np.uint8]:
        """H x W x 3 RGB, writable. Raises PictureError."""
        try:
            image = np.array(decode(self.path.read_bytes()))  # a copy: decoders may return a read-only view
        except FileNotFoundError as error:
            raise MissingPicture(self.path, "no such picture") from error
        except (OSError, ValueError) as error:
            raise UnreadablePicture(self.path, f"cannot be read as a picture: {error}") from error
        height, width = image.shape[:2]
        if Size(width, height) != self.size:
            raise WrongSize(self.path, f"is {width}x{height}, annotated as {self.size.width}x{self.size.height}")
        return image


def _has_area(boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


@dataclass(frozen=True)
class Scan:
    """A set as its annotations give it. ``source`` is the annotation file or the list of its pictures."""

    source: Path
    labels: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    crowds: int = 0
    """Regions that outline no single object; they are left out of ``pictures``."""
    findings: tuple[Finding, ...] = ()
    origin: DataSource | None = None
    """The description that annotations give of their data set; None where they do not name it."""


class PictureDataset:
    """The pictures of one scan, decoded when asked for.

    Boxes are clipped to the picture; what is then empty is dropped.
    """

    def __init__(self, scan: Scan) -> None:
        """Raises AnnotationsError for the first error of the scan."""
        errors = errors_in(scan.findings)
        if errors:
            more = f" (and {len(errors) - 1} more)" if errors[1:] else ""
            raise AnnotationsError(f"{errors[0].kind.title}: {errors[0]}{more}")
        self._labels = scan.labels
        self._pictures = scan.pictures
        self.origin = scan.origin

    @property
    def labels(self) -> tuple[str, ...]:
        return self._labels

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        """Raises PictureError where the picture is missing, broken or not of the annotated size."""
        picture = self._pictures[index]
        boxes, placements = picture.clipped_boxes()
        kept = placements <= Placement.CLIPPED
        return Sample(picture.read_image(), boxes[kept], picture.labels[kept], picture.identifier)
