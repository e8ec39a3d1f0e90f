"""Writes the metrics as text, and serves them over HTTP."""

import asyncio
import gzip
from collections.abc import Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from damoserve_server.metrics.rows import Rows

OPENMETRICS_END = b"# EOF\n"
"""The last line of a text in the format OpenMetrics."""
GZIP_LEVEL = 1
"""The quickest level: Prometheus is usually near, and more would take longer than the rest of a scrape."""


class Registry(CollectorRegistry):
    """A registry that writes rows by itself, and has the library write what else is registered."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[Rows] = []
        self._others = CollectorRegistry()

    def register(self, collector: Collector) -> None:
        super().register(collector)
        if isinstance(collector, Rows):
            self._rows.append(collector)
        else:
            self._others.register(collector)

    def text(self, accept: str) -> tuple[bytes, str]:
        """Returns the metrics in the format that `accept` asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        openmetrics = content_type.startswith("application/openmetrics-text")
        rows = "".join(rows.text(openmetrics) for rows in self._rows).encode()
        others: bytes = encode(self._others)
        if openmetrics:
            return others.removesuffix(OPENMETRICS_END) + rows + OPENMETRICS_END, content_type
        return others + rows, content_type


class Endpoint:
    """Serves a registry over HTTP from threads of its own."""

    def __init__(self, registry: Registry, host: str, port: int) -> None:
        """Raises OSError if the port is taken."""
        self._registry = registry
        self._server, self._thread = start_http_server(port, host, registry)
        self._library_app = self._server.get_app()
        self._server.set_app(self._answer)
        self.port = self._server.server_port

    async def close(self) -> None:
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "GET" or environ.get("QUERY_STRING"):
            library_app: Any = self._library_app
            answer: Iterable[bytes] = library_app(environ, start_response)
            return answer
        text, content_type = self._registry.text(environ.get("HTTP_ACCEPT", ""))
        headers = [("Content-Type", content_type)]
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            text = gzip.compress(text, GZIP_LEVEL)
            headers.append(("Content-Encoding", "gzip"))
        start_response("200 OK", headers)
        return [text]
