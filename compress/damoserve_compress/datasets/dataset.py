"""Samples and data sets: boxed pictures, as training, calibration and evaluation read them."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture with its boxes.

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


def hash_samples(dataset: Dataset) -> str:
    """Reads every sample, and gives the SHA-256 over labels, pixels and boxes."""
    digest = hashlib.sha256(repr(dataset.labels).encode())
    for index in range(len(dataset)):
        sample = dataset[index]
        for array in (sample.image, sample.boxes, sample.labels):
            digest.update(repr(array.shape).encode() + array.tobytes())
    return digest.hexdigest()
