"""The settings of connections: how long they live, and how much each may carry."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, le=86400 * 20)]
"""A time in seconds that is set; at most 20 days, as gRPC counts milliseconds in 32 bits."""


class ConnectionSettings(BaseModel):
    """Limits of every connection. Times are in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keepalive_seconds: Seconds = 60.0
    """Silence after which a connection is pinged, to know whether its client is still there."""
    keepalive_timeout_seconds: Seconds = 20.0
    """Wait for the answer to that ping; without one the connection is closed and its calls are cancelled."""
    min_ping_interval_seconds: Annotated[float, Field(ge=0, le=86400 * 20)] = 10.0
    """Least time between two pings of a client; one that pings more often loses its connection."""
    max_age_seconds: Seconds | None = 3600.0
    """Age after which a connection takes no new calls, so that balancers and new certificates get their turn.

    Unset: any age.
    """
    max_age_grace_seconds: Seconds | None = None
    """Time that the calls have which are open at that age. Unset: as long as they take."""
    max_idle_seconds: Seconds | None = None
    """Time after which a connection without calls is closed. Unset: never."""
    max_streams: Annotated[int, Field(gt=0, lt=2**31)] = 256
    """Calls that one connection may have open; gRPC holds back more in the client."""

    def options(self) -> list[tuple[str, int]]:
        """Returns the settings as options of a gRPC server."""
        seconds = {
            "grpc.keepalive_time_ms": self.keepalive_seconds,
            "grpc.keepalive_timeout_ms": self.keepalive_timeout_seconds,
            "grpc.http2.min_ping_interval_without_data_ms": self.min_ping_interval_seconds,
            "grpc.max_connection_age_ms": self.max_age_seconds,
            "grpc.max_connection_age_grace_ms": self.max_age_grace_seconds,
            "grpc.max_connection_idle_ms": self.max_idle_seconds,
        }
        return [
            *((name, round(1000 * value)) for name, value in seconds.items() if value is not None),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.max_concurrent_streams", self.max_streams),
        ]
