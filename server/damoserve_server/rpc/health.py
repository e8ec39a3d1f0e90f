"""Says by `grpc.health.v1` whether the server serves: not before the models are warm, in a fault, or while it stops."""

import logging

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio

SERVICES = ("", "damoserve.v1.DetectionService")
"""Names under which health can be asked for; the empty one means the whole server."""

log = logging.getLogger(__name__)


class Health:
    """The state that load balancers see. `servicer` is to be added to the server."""

    def __init__(self) -> None:
        self.servicer = aio.HealthServicer()
        self._loaded = False
        self._fault: str | None = None

    async def starting(self) -> None:
        await self._publish()

    async def serving(self) -> None:
        self._loaded = True
        await self._publish()

    async def degraded(self, reason: str) -> None:
        """Says NOT_SERVING until `recovered`. The reason is for the log."""
        if reason != self._fault:
            log.error("NOT_SERVING: %s", reason)
        self._fault = reason
        await self._publish()

    async def recovered(self) -> None:
        """Says SERVING again, if everything is loaded."""
        if self._fault is not None:
            log.warning("recovered: %s", self._fault)
        self._fault = None
        await self._publish()

    async def stopping(self) -> None:
        """Says NOT_SERVING for good."""
        await self.servicer.enter_graceful_shutdown()

    async def _publish(self) -> None:
        healthy = self._loaded and self._fault is None
        states = health_pb2.HealthCheckResponse
        for service in SERVICES:
            await self.servicer.set(service, states.SERVING if healthy else states.NOT_SERVING)
