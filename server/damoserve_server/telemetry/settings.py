"""Where traces go and how logs look, as an operator sets it."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from damoserve_profiles.recipe import Fraction


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a line of the log looks."""

    TEXT = "text"
    JSON = "json"


class TracingSettings(BaseModel):
    """Raises ValidationError if traces are wanted and OpenTelemetry is not installed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """Of a collector that speaks OTLP over gRPC, `http://127.0.0.1:4317`. Unset: nothing is traced."""
    sample_ratio: Fraction = 0.1
    """Share of the calls that are traced, of those that bring no trace: a caller's own decision is followed."""
    service_name: Annotated[str, Field(min_length=1)] = "damoserve"

    @model_validator(mode="after")
    def _installed(self) -> Self:
        if self.endpoint is not None:
            try:
                import opentelemetry.exporter.otlp.proto.grpc.trace_exporter
                import opentelemetry.sdk.trace  # noqa: F401
            except ImportError as error:
                raise ValueError(f"traces need OpenTelemetry: pip install 'damoserve[tracing]' ({error})") from error
        return self
