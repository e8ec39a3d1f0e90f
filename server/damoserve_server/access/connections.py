"""How long connections live, and how much each may carry."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, le=86400 * 20)]
"""gRPC counts milliseconds in 32 bits."""


class ConnectionSettings(BaseModel):
    """Limits of one connection."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keepalive_seconds: Seconds = 60.0
    """A connection that was silent so long is asked whether its client is still there."""
    keepalive_timeout_seconds: Seconds = 20.0
    """For the answer; without one the connection is closed and its calls are cancelled."""
    min_ping_interval_seconds: Annotated[float, Field(ge=0, le=86400 * 20)] = 10.0
    """A client that asks more often loses its connection."""
    max_age_seconds: Seconds | None = 3600.0
    """Older connections take no new calls, so that balancers and new certificates get their turn. Unset: any age."""
    max_age_grace_seconds: Seconds | None = None
    """For the calls that are open then. Unset: as long as they take."""
    max_idle_seconds: Seconds | None = None
    """A connection without calls is closed after so long. Unset: never."""
    max_streams: Annotated[int, Field(gt=0, lt=2**31)] = 256
    """Calls that one connection may have open; the client holds back more."""

    def options(self) -> list[tuple[str, int]]:
        """The options of gRPC."""
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
