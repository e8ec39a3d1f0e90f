"""Serves the metrics."""

import asyncio

from prometheus_client import CollectorRegistry, start_http_server


class Endpoint:
    """Serves a registry over HTTP from a thread of its own."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        """Raises OSError if the port is taken."""
        self._server, self._thread = start_http_server(port, host, registry)
        self.port = self._server.server_port

    async def close(self) -> None:
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        self._thread.join()
