"""Calls that come before the models are loaded, or while the server stops: they wait instead of being refused."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from damoserve_server.detection.detector import Detector
from damoserve_server.errors import DeadlineExpired, ShuttingDown

LOADING_RETRY_SECONDS = 1.0
"""Seconds after which to try again, for calls whose time ran out while the models were loaded."""


class Startup:
    """Holds calls until the models are loaded, as long as their deadline allows; or until the port is closed."""

    def __init__(self, detector: asyncio.Future[Detector], default_budget: float) -> None:
        """Waits for `detector`; `default_budget`, in seconds, bounds calls that have no deadline of their own."""
        self._detector = detector
        self.default_budget = default_budget
        self._closed: asyncio.Event | None = None

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Lets calls wait while the block closes the port, and refuses them at its end.

        A caller that is refused calls again at once, and gRPC answers CANCELLED to calls that it has when the port is
        closed and has not handed out. A caller that waits does not call again.
        """
        self._closed = asyncio.Event()
        try:
            yield
        finally:
            self._closed.set()

    async def detector(self, deadline: float | None = None) -> Detector:
        """Returns the detector once the models are loaded. Raises DeadlineExpired, or ShuttingDown in a stop.

        `deadline` is on the monotonic clock.
        """
        if self._closed is not None:
            await self._closed.wait()
            raise ShuttingDown
        if self._detector.done():  # as for nearly every call: no timer, no task
            return self._detector.result()
        try:
            async with asyncio.timeout_at(time.monotonic() + self.default_budget if deadline is None else deadline):
                return await asyncio.shield(self._detector)
        except TimeoutError:
            expired = DeadlineExpired("the time ran out while the models were loaded")
            expired.retry_after = LOADING_RETRY_SECONDS
            raise expired from None
