"""`grpc.health.v1`: NOT_SERVING until every model is warm, and again when the server stops."""

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio

SERVICES = ("", "damoserve.v1.DetectionService")


class Health:
    """The state that load balancers see. `servicer` is to be added to the server."""

    def __init__(self) -> None:
        self.servicer = aio.HealthServicer()

    async def starting(self) -> None:
        await self._set(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def serving(self) -> None:
        await self._set(health_pb2.HealthCheckResponse.SERVING)

    async def stopping(self) -> None:
        """For good."""
        await self.servicer.enter_graceful_shutdown()

    async def _set(self, status: int) -> None:
        for service in SERVICES:
            await self.servicer.set(service, status)
