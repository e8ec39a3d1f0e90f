"""The settings of traces and of the log."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from damoserve_profiles.recipe import Fraction


class LogLevel(StrEnum):
    """The least level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """The format of a line of the log."""

    TEXT = "text"
    JSON = "json"


class TracingSettings(BaseModel):
    """The settings of traces. Raises ValidationError if they are set and OpenTelemetry is not installed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """The address of a collector for OTLP over gRPC, `http://127.0.0.1:4317`. Unset: nothing is traced."""
    sample_ratio: Fraction = 0.1
    """Share of the calls that are traced, 0 to 1, where the caller brings no trace. Its own decision goes before it."""
    service_name: Annotated[str, Field(min_length=1)] = "damoserve"
    """The name of this server in traces."""

    @model_validator(mode="after")
    def _installed(self) -> Self:
        if self.endpoint is not None:
            try:
                import opentelemetry.exporter.otlp.proto.grpc.trace_exporter
                import opentelemetry.sdk.trace  # noqa: F401
            except ImportError as error:
                raise ValueError(f"traces need OpenTelemetry: pip install 'damoserve[tracing]' ({error})") from error
        return self
