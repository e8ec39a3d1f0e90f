"""Calls of gRPC, with the names and labels of go-grpc-middleware, so that public dashboards find them."""

from collections.abc import Iterable, Iterator

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

RPC = ("grpc_type", "grpc_service", "grpc_method")
CODES = tuple(grpc.StatusCode)
PLACES = {code: place for place, code in enumerate(CODES, 1)}


class Calls:
    """The series of one method. Only the event loop counts.

    The calls that have begun and those that have ended stand in one list: its copy is one step of the interpreter, so
    whoever reads it never sees more calls ended than begun.
    """

    def __init__(self, received: Counter, sent: Counter, handling: Histogram) -> None:
        self.received = received
        self.sent = sent
        self._handling = handling
        self._counts = [0] * (1 + len(CODES))

    def begin(self) -> None:
        self._counts[0] += 1

    def end(self, code: grpc.StatusCode, seconds: float) -> None:
        self._counts[PLACES[code]] += 1
        self._handling.observe(seconds)

    def counts(self) -> list[int]:
        """Calls that have begun, and how many have ended with each code."""
        return self._counts.copy()


class CallMetrics(Collector):
    """`collect` shows the calls of a method as they were at one moment."""

    def __init__(self, registry: CollectorRegistry, edges: tuple[float, ...]) -> None:
        self._calls: dict[tuple[str, str, str], Calls] = {}
        registry.register(self)
        self._handling = Histogram(
            "grpc_server_handling_seconds",
            "Time of a call, whatever its end; of a stream, as long as it was open.",
            RPC,
            registry=registry,
            buckets=edges,
        )
        self._received = Counter("grpc_server_msg_received", "Messages from callers.", RPC, registry=registry)
        self._sent = Counter("grpc_server_msg_sent", "Messages to callers.", RPC, registry=registry)

    def of(self, labels: tuple[str, str, str]) -> Calls:
        """`labels` are the type, the service and the method."""
        if labels not in self._calls:
            self._calls[labels] = Calls(
                self._received.labels(*labels), self._sent.labels(*labels), self._handling.labels(*labels)
            )
        return self._calls[labels]

    def add(self, service: str, methods: Iterable[str], kind: str) -> None:
        """Creates the series of those methods of a gRPC service that are of this type."""
        for method in methods:
            self.of((kind, service, method))

    def collect(self) -> Iterator[Metric]:
        started = CounterMetricFamily("grpc_server_started", "Calls started.", labels=RPC)
        handled = CounterMetricFamily(
            "grpc_server_handled",
            "Calls completed; a client that goes away is CANCELLED. The rest of those started is still open.",
            labels=[*RPC, "grpc_code"],
        )
        for labels, calls in list(self._calls.items()):
            begun, *ended = calls.counts()
            started.add_metric(labels, begun)
            for code, count in zip(CODES, ended, strict=True):
                handled.add_metric([*labels, code.name], count)
        yield started
        yield handled
