"""Why a file could not be got.

FetchError
├── SourceInvalid      the source, or the hash, is not written as one
├── SourceGone         what it names is not there, or not any more, or not for everybody
├── TransferFailed     it did not arrive whole; asking again goes on where it stopped
├── WrongContent       it arrived, but it is not what was asked for
├── TargetUnusable     this machine cannot keep it where it is wanted
└── ClientMissing      the client library of the hub is not installed, or does not load
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOST_WEIGHTS = (
    "The download links of DAMO-YOLO itself are dead since 2025: try modelscope:OWNER/NAME/FILE, hf:OWNER/NAME/FILE "
    "(Cwhgn/DAMO-YOLO-T had the legacy T), or the path of a copy that someone kept"
)


class FetchError(Exception):
    """The file could not be got."""


class SourceInvalid(FetchError):
    """No source, or no hash, is written so."""


class SourceGone(FetchError):
    """The source does not have it."""

    def __init__(self, source: str, why: str) -> None:
        hint = f". {LOST_WEIGHTS}" if source.partition("@")[0].endswith(".pth") else ""
        super().__init__(f"{source} cannot be had: {why}{hint}")


class TransferFailed(FetchError):
    """The source may have it, but it did not arrive."""


class WrongContent(FetchError):
    """Something else arrived."""


class TargetUnusable(FetchError):
    """The file or folder cannot be written where it is wanted."""


class ClientMissing(FetchError):
    """The hub's library is not installed, or does not load."""


@contextmanager
def target_errors(path: Path) -> Iterator[None]:
    """Turns an OSError into TargetUnusable: the fault is this machine's, not the source's."""
    try:
        yield
    except OSError as error:
        raise TargetUnusable(f"{path} cannot be written: {error.strerror or error}") from error
