"""Data sets of boxed pictures: what training, calibration and evaluation read. Needs NumPy and OpenCV, not torch.

DatasetError (ValueError)
├── LayoutError             the folder has none of the layouts that are read
├── AnnotationsError        the annotations are missing, cannot be parsed or contradict themselves
└── PictureError            one picture cannot be used
    ├── MissingPicture
    ├── UnreadablePicture   not a supported format, or broken, or cut short
    └── WrongSize           another width or height than annotated
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AnnotationsError",
    "Dataset",
    "DatasetError",
    "LayoutError",
    "MissingPicture",
    "PictureError",
    "Sample",
    "UnreadablePicture",
    "WrongSize",
    "fingerprint",
]


class DatasetError(ValueError):
    """Any fault of a data set on disk."""


class LayoutError(DatasetError):
    """The folder cannot be recognised as a data set."""


class AnnotationsError(DatasetError):
    """The annotations cannot be used."""


class PictureError(DatasetError):
    """One picture cannot be used."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


class MissingPicture(PictureError):
    """There is no such file."""


class UnreadablePicture(PictureError):
    """The file is no picture of a supported format, or is damaged."""


class WrongSize(PictureError):
    """The picture is not as wide and high as annotated."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture with its boxes.

    ``image`` is H x W x 3 RGB; ``boxes`` is M x 4 as (left, top, right, bottom) in pixels, right and bottom exclusive;
    ``labels`` are M indices into the data set's label names; ``identifier`` is unique within the data set.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    identifier: int


class Dataset(Protocol):
    """A finite, random-access collection of samples; asking for the same index again gives an equal sample."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 over labels, pixels and boxes: equal for equal data only. Reads every sample."""
    digest = hashlib.sha256(repr(dataset.labels).encode())
    for index in range(len(dataset)):
        sample = dataset[index]
        for array in (sample.image, sample.boxes, sample.labels):
            digest.update(repr(array.shape).encode() + array.tobytes())
    return digest.hexdigest()
