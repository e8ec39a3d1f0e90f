"""A gate that lets requests in until the server stops, and then waits for those inside."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from damoserve_server.errors import ShuttingDown


class Gate:
    """Counts the requests that are inside."""

    def __init__(self) -> None:
        self._open = True
        self._requests = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Counts a request as inside while the block runs. Raises ShuttingDown once the gate is closed."""
        if not self._open:
            raise ShuttingDown
        self._requests += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._requests -= 1
            if not self._requests:
                self._empty.set()

    async def close(self, timeout: float) -> None:
        """Lets nothing in any more; returns when all have left, or after `timeout` seconds."""
        self._open = False
        with suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), timeout)
