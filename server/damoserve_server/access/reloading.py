"""Values read from files that an operator may replace while the server runs."""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)


class Reloading(Generic[T]):
    """What `read` made of the files; made again when one of them has changed. Threads may share it.

    A change that `read` refuses with a ValueError leaves the value as it was. `report` hears of every change, and
    whether it was taken; the log says why not.
    """

    def __init__(self, files: Sequence[Path], read: Callable[[], T], report: Callable[[bool], None]) -> None:
        """Raises what `read` raises."""
        self._files = files
        self._read = read
        self._report = report
        self._lock = threading.Lock()
        self._stamps = self._look()
        self._value = read()

    def current(self) -> T:
        with self._lock:
            # Taken before the files are read: what is written while they are changes the stamps again.
            stamps = self._look()
            if stamps != self._stamps:
                self._stamps = stamps
                self._reload()
            return self._value

    def _look(self) -> list[tuple[int, int, int] | None]:
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
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
