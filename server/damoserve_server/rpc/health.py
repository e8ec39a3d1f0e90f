"""`grpc.health.v1`: NOT_SERVING until every model is warm, while something is wrong, and when the server stops."""

import logging

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio

SERVICES = ("", "damoserve.v1.DetectionService")

log = logging.getLogger(__name__)


class Health:
    """The state that load balancers see. `servicer` is to be added to the server."""

    def __init__(self) -> None:
        self.servicer = aio.HealthServicer()
        self._loaded = False
        self._fault: str | None = None

    async def starting(self) -> None:
        await self._tell()

    async def serving(self) -> None:
        self._loaded = True
        await self._tell()

    async def degraded(self, reason: str) -> None:
        """NOT_SERVING until `recovered`. The reason is for the log."""
        if reason != self._fault:
            log.error("NOT_SERVING: %s", reason)
        self._fault = reason
        await self._tell()

    async def recovered(self) -> None:
        """SERVING again, if everything is loaded."""
        if self._fault is not None:
            log.warning("recovered: %s", self._fault)
        self._fault = None
        await self._tell()

    async def stopping(self) -> None:
        """For good."""
        await self.servicer.enter_graceful_shutdown()

    async def _tell(self) -> None:
        healthy = self._loaded and self._fault is None
        states = health_pb2.HealthCheckResponse
        for service in SERVICES:
            await self.servicer.set(service, states.SERVING if healthy else states.NOT_SERVING)
