"""Keeps values that were read from files, and reads them again when an operator has replaced the files."""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)


class Reloading(Generic[T]):
    """A value that `read` has made of the files, and makes again when one of them has changed. Threads may share it.

    A change that `read` refuses with a ValueError leaves the value as it was, and the log says why.
    """

    def __init__(self, files: Sequence[Path], read: Callable[[], T], report: Callable[[bool], None]) -> None:
        """`report` is called at every change, with whether it was accepted. Raises what `read` raises."""
        self._files = files
        self._read = read
        self._report = report
        self._lock = threading.Lock()
        self._stamps = self._read_stamps()
        self._value = read()

    def current(self) -> T:
        """Returns the value, read anew if a file has changed since the last call."""
        with self._lock:
            # Taken before the files are read: what is written while they are changes the stamps again.
            stamps = self._read_stamps()
            if stamps != self._stamps:
                self._stamps = stamps
                self._reload()
            return self._value

    def _read_stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._files]

    def _reload(self) -> None:
        names = ", ".join(map(str, self._files))
        try:
            self._value = self._read()
        except ValueError as error:
            log.error("%s changed and cannot be used, so what was read before stays in force: %s", names, error)
            self._report(False)
        else:
            log.info("%s changed and was read again", names)
            self._report(True)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Returns what differs when a file was written or replaced; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
