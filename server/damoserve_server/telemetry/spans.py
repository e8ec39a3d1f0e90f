"""The interface of traces. The classes here record nothing; `opentelemetry` has those that do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc

Fields = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Fault:
    """The failure of a call or of a part: the reason of the contract's table, and the message for the caller."""

    reason: str
    message: str


class Span:
    """One call, or a part of one. Times are in seconds on the monotonic clock."""

    trace_id = ""
    """The id of the trace, 32 hexadecimal digits; empty where nothing is traced."""

    def part(self, kind: str, began: float) -> "Span":
        """Starts a span inside this one, and returns it."""
        return self

    def batch(self, members: Sequence["Span"], fields: Fields, began: float, failure: Exception | None) -> None:
        """Records the batch that has computed the requests of these spans, this one's among them, and ends now."""

    def stages(self, began: float, seconds: Mapping[str, float]) -> None:
        """Records stages that have followed one another, each with its seconds."""

    def end(self, code: grpc.StatusCode, fault: Fault | None, fields: Fields) -> None:
        """Ends the span with its code, its fault if it failed, and its attributes."""


class Tracer:
    """Makes the spans of calls."""

    def start_call(self, method: str, metadata: Mapping[str, str | bytes]) -> Span:
        """Starts the span of a call. `method` is `package.Service/Method`; the metadata may name the caller's span."""
        return NO_SPAN

    def close(self) -> None:
        """Sends the spans that are left; may take two seconds."""


NO_SPAN = Span()
"""The span of what is not traced."""
