"""Calls that come while the models are loaded, or while the port is closed."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from damoserve_server.detection.detector import Detector
from damoserve_server.errors import DeadlineExpired, ShuttingDown

LOADING_RETRY_SECONDS = 1.0
"""When to try again, for calls whose time ran out while the models were loaded."""


class Startup:
    """Calls that come before the models are loaded wait for them, as long as their deadline allows.

    Those that come while the port is closed wait for that.
    """

    def __init__(self, detector: asyncio.Future[Detector], default_budget: float) -> None:
        """`default_budget`, in seconds, is for calls that have no deadline of their own."""
        self._detector = detector
        self.default_budget = default_budget
        self._closed: asyncio.Event | None = None

    @contextmanager
    def closing(self) -> Iterator[None]:
        """From now on calls wait, and are refused at the end.

        Who is refused calls again at once, and gRPC answers CANCELLED to calls that it has when the port is closed and
        has not handed out. Who waits does not call.
        """
        self._closed = asyncio.Event()
        try:
            yield
        finally:
            self._closed.set()

    async def finished(self, deadline: float | None = None) -> Detector:
        """`deadline` is on the monotonic clock. Raises DeadlineExpired, or ShuttingDown if there is no more to come."""
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
