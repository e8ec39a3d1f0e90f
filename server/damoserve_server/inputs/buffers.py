"""Buffers for network inputs: allocated once, leased to requests."""

import logging
from math import prod
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles.imaging import Size
from damoserve_server.errors import QueueFull

RETRY_AFTER_SECONDS = 0.1
"""Seconds after which a caller that finds every row leased may try again."""
ALIGNMENT = 64
"""Bytes of a cache line, and of the widest vector that processors load at once."""

CGROUP_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
SHARE_OF_LIMIT = 4
"""Divisor of a container's memory that gives what input buffers may take: engines and decoding need the rest."""

log = logging.getLogger(__name__)


def aligned(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Allocates an uninitialised array whose first byte is at a multiple of `ALIGNMENT`."""
    bytes_ = np.empty(prod(shape) + ALIGNMENT, np.uint8)
    start = -bytes_.ctypes.data % ALIGNMENT
    return bytes_[start : start + prod(shape)].reshape(shape)


def affordable_slots(wanted: int, least: int, size: Size, limit: Path = CGROUP_MEMORY_LIMIT) -> int:
    """Returns `wanted`, or as many inputs as the container's memory (cgroup v2) can hold, but at least `least`."""
    try:
        available = int(limit.read_text()) // SHARE_OF_LIMIT
    except (OSError, ValueError):  # no cgroup v2, or "max": no limit
        return wanted
    slots = max(least, min(wanted, available // (size.width * size.height * 3)))
    if slots < wanted:
        what = f"{slots} buffers, not {wanted}, for network inputs of {size.width} x {size.height}"
        log.warning("%s: a part in %d of the container's memory; more requests are refused", what, SHARE_OF_LIMIT)
    return slots


class Pool:
    """A fixed number of network inputs, uint8 `[height, width, 3]` each. One thread leases; any may release."""

    def __init__(self, slots: int, size: Size) -> None:
        stride = -(-size.height * size.width * 3 // ALIGNMENT) * ALIGNMENT
        self.bytes = slots * stride
        rows = aligned((slots, stride))[:, : size.height * size.width * 3]
        self._rows = [row.reshape(size.height, size.width, 3) for row in rows]
        self._free = list(range(slots))

    @property
    def free(self) -> int:
        """Number of rows that can be leased."""
        return len(self._free)

    @property
    def leased(self) -> int:
        """Number of rows that are leased."""
        return len(self._rows) - len(self._free)

    def lease(self) -> "Lease":
        """Leases a row. Raises QueueFull when all are leased."""
        if not self._free:
            message = f"the server already works on {len(self._rows)} images of this size; try again later"
            raise QueueFull(message, RETRY_AFTER_SECONDS, limit=len(self._rows))
        return Lease(self, self._free.pop())

    def _view(self, slot: int) -> NDArray[np.uint8]:
        row: NDArray[np.uint8] = self._rows[slot]
        return row

    def _return(self, slot: int) -> None:
        self._free.append(slot)


class Lease:
    """A row that is leased until it is given back: at the end of a `with` block, or by one call of `release`."""

    def __init__(self, pool: Pool, slot: int) -> None:
        self._pool: Pool | None = pool
        self._slot = slot

    @property
    def row(self) -> NDArray[np.uint8]:
        """The row, `[height, width, 3]`. Raises RuntimeError after the release: someone else may be writing there."""
        if self._pool is None:
            raise RuntimeError("the row was given back")
        return self._pool._view(self._slot)

    def release(self) -> None:
        """Gives the row back. Raises RuntimeError the second time, which would lease one row to two requests."""
        if self._pool is None:
            raise RuntimeError("the row was given back already")
        pool, self._pool = self._pool, None
        pool._return(self._slot)

    def __enter__(self) -> NDArray[np.uint8]:
        return self.row

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
