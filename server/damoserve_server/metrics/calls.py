"""Metrics of gRPC calls, with the names and labels of go-grpc-middleware, so that public dashboards find them."""

from collections.abc import Iterable, Sequence

import grpc
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from damoserve_server.errors import codes
from damoserve_server.metrics.rows import Distribution, Histogram, Numbers, Row, Rows

RPC = ("grpc_type", "grpc_service", "grpc_method")
"""The labels of a method."""
STARTED = Metric("grpc_server_started", "Calls started.", "counter")
HANDLED = Metric(
    "grpc_server_handled",
    "Calls completed; a client that goes away is CANCELLED. The rest of those started is still open.",
    "counter",
)
POSSIBLE = {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, *codes()}
"""Codes with which calls end here. Should a library's service end one with another, it is counted as UNKNOWN."""
COLUMNS = {code: column for column, code in enumerate((code for code in grpc.StatusCode if code in POSSIBLE), 1)}
"""The number of a row that counts the calls with each code; the first counts those that have begun."""


class Calls(Row):
    """Calls of one method: how many have begun, and how many have ended with each code."""

    def __init__(self, labels: Sequence[str], received: Counter, sent: Counter, handling: Distribution) -> None:
        super().__init__(1 + len(COLUMNS))
        self.received = received
        self.sent = sent
        self._handling = handling
        self._labels = dict(zip(RPC, labels, strict=True))

    def begin(self) -> None:
        self.numbers[0] += 1

    def end(self, code: grpc.StatusCode, seconds: float) -> None:
        self.numbers[COLUMNS.get(code, COLUMNS[grpc.StatusCode.UNKNOWN])] += 1
        self._handling.observe(seconds)

    def samples(self, numbers: Numbers) -> Sequence[Sequence[Sample]]:
        started = Sample("grpc_server_started_total", self._labels, numbers[0])
        return [started], [
            Sample("grpc_server_handled_total", {**self._labels, "grpc_code": code.name}, numbers[column])
            for code, column in COLUMNS.items()
        ]


class CallMetrics(Rows):
    """The metrics of all methods."""

    def __init__(self, registry: CollectorRegistry, edges: Sequence[float]) -> None:
        """`edges` are those of the histogram of the time of calls, in seconds."""
        super().__init__(STARTED, HANDLED)
        self._calls: dict[tuple[str, str, str], Calls] = {}
        self._handling = Histogram(
            "grpc_server_handling_seconds",
            "Time of a call, whatever its end; of a stream, as long as it was open.",
            RPC,
            edges,
        )
        self._received = Counter("grpc_server_msg_received", "Messages from callers.", RPC, registry=registry)
        self._sent = Counter("grpc_server_msg_sent", "Messages to callers.", RPC, registry=registry)
        registry.register(self)
        registry.register(self._handling)

    def rows(self) -> Iterable[Row]:
        return list(self._calls.values())

    def of(self, labels: tuple[str, str, str]) -> Calls:
        """Returns the row of a method; `labels` are its type, its service and its name."""
        if labels not in self._calls:
            messages = self._received.labels(*labels), self._sent.labels(*labels)
            self._calls[labels] = Calls(labels, *messages, self._handling.labels(*labels))
        return self._calls[labels]

    def add(self, service: str, methods: Iterable[str], kind: str) -> None:
        """Creates the series of those methods of a gRPC service that are of this type."""
        for method in methods:
            self.of((kind, service, method))
