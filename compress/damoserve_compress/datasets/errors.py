"""The errors of data sets on disk.

DatasetError (ValueError)
├── LayoutError             the folder has none of the layouts that are read
├── AnnotationsError        the annotations are missing, cannot be parsed or contradict themselves
└── PictureError            one picture cannot be used
    ├── MissingPicture
    ├── UnreadablePicture   not a supported format, or broken, or cut short
    └── WrongSize           another width or height than annotated
"""

from pathlib import Path


class DatasetError(ValueError):
    """Any fault of a data set on disk."""


class LayoutError(DatasetError):
    """The folder cannot be recognised as a data set."""


class AnnotationsError(DatasetError):
    """The annotations cannot be used."""


class PictureError(DatasetError):
    """A picture cannot be used."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


class MissingPicture(PictureError):
    """There is no such file."""


class UnreadablePicture(PictureError):
    """The file is no picture of a supported format, or is damaged."""


class WrongSize(PictureError):
    """The picture is not as wide and high as annotated."""
