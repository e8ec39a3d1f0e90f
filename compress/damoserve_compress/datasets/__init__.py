"""Data sets of boxed pictures: what training, calibration and evaluation read. Needs NumPy and OpenCV, not torch.

What can be wrong with one: `damoserve_compress.datasets.errors`.
"""

from damoserve_compress.datasets.cache import fingerprint
from damoserve_compress.datasets.dataset import Dataset, Sample
from damoserve_compress.datasets.errors import (
    AnnotationsError,
    DatasetError,
    LayoutError,
    MissingPicture,
    PictureError,
    UnreadablePicture,
    WrongSize,
)

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
