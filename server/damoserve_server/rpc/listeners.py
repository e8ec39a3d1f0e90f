"""Makes gRPC servers as the settings ask for them: who may call, and how messages and connections are bounded."""

from __future__ import annotations  # gRPC's server is generic for type checkers only

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import grpc

from damoserve_server.access.tls import server_credentials
from damoserve_server.access.tokens import Tokens
from damoserve_server.configuration.settings import Settings
from damoserve_server.detection.outcomes import RequestAccounting
from damoserve_server.metrics.metrics import Metrics
from damoserve_server.rpc import reflection
from damoserve_server.rpc.authorisation import AccessInterceptor
from damoserve_server.rpc.calls import CallInterceptor
from damoserve_server.rpc.handlers import METHOD_TYPES
from damoserve_server.telemetry.records import Telemetry

if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor


class Listeners:
    """Makes servers that share their interceptors, and so the metrics of calls and the limits of tokens."""

    def __init__(self, settings: Settings, metrics: Metrics, requests: RequestAccounting, telemetry: Telemetry) -> None:
        self._settings = settings
        self._metrics = metrics
        calls = CallInterceptor(metrics, requests, telemetry)
        self._interceptors: list[grpc.aio.ServerInterceptor] = [calls]  # the outer first
        access = settings.access
        if access.tokens is not None:
            tokens = Tokens(access.tokens, partial(metrics.models.count_credential_reload, "tokens"))
            self._interceptors.append(AccessInterceptor(tokens, access.open_health))

    def make_server(self) -> grpc.aio.Server:
        return grpc.aio.server(
            interceptors=self._interceptors,
            options=[
                ("grpc.max_receive_message_length", self._settings.max_message_bytes),
                ("grpc.so_reuseport", 0),  # a second server on the same port is to fail, not to share its calls
                *self._settings.connections.options(),
            ],
            maximum_concurrent_rpcs=self._settings.max_concurrent_calls,
        )

    def publish(self, server: grpc.aio.Server, services: Sequence[ServiceDescriptor]) -> None:
        """Creates the series of the server's services, and lists them in its reflection if that is on."""
        for service in services:
            for method in service.methods:
                kind = METHOD_TYPES[method.client_streaming, method.server_streaming]
                self._metrics.add_methods(service.full_name, [method.name], kind)
        if self._settings.reflection:
            reflection.add_to_server(services, server)

    def bind(self, server: grpc.aio.Server, host: str, port: int) -> int:
        """Opens the address, with TLS if that is set, and returns the port. Raises OSError."""
        address, tls = f"{host}:{port}", self._settings.tls
        try:
            if tls is None:
                return server.add_insecure_port(address)
            count_reload = partial(self._metrics.models.count_credential_reload, "certificate")
            return server.add_secure_port(address, server_credentials(tls, count_reload))
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}") from error
