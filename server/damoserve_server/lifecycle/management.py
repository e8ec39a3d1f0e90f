"""The admin service and the watch of the repository, which both change the models of a running server."""

from __future__ import annotations  # gRPC's server is generic for type checkers only

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from damoserve_server.lifecycle.lifecycle import Lifecycle
from damoserve_server.lifecycle.watch import Watcher

if TYPE_CHECKING:
    import grpc


class ModelManagement:
    """Starts and stops both together with the operations that they ask for."""

    def __init__(self, lifecycle: Lifecycle, server: grpc.aio.Server | None, watch_seconds: float) -> None:
        """Takes the admin service's server, or None for none, and the seconds between two looks, or 0 for no watch."""
        self._lifecycle = lifecycle
        self._server = server
        self._watch_seconds = watch_seconds
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the admin service and the watch, as far as they are wanted."""
        if self._server is not None:
            await self._server.start()
        if self._watch_seconds:
            self._watch = asyncio.create_task(Watcher(self._lifecycle, self._watch_seconds).run())

    async def stop(self) -> None:
        """Stops both, and ends the operation that runs, without a change."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        await self._lifecycle.close()
        if self._server is not None:
            await self._server.stop(None)
