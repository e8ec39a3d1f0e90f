"""Lets work in until the server stops, then waits for what is inside."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from damoserve_server.errors import ShuttingDown


class Gate:
    """Counts the requests inside."""

    def __init__(self) -> None:
        self._open = True
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def passage(self) -> Iterator[None]:
        """Raises ShuttingDown once the gate is closed."""
        if not self._open:
            raise ShuttingDown
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def close(self, timeout: float) -> None:
        """Lets nothing in any more; returns when all have left, or after `patience` seconds."""
        self._open = False
        with suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), timeout)
