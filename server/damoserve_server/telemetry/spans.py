"""What the server tells a trace. The classes here are its interface, and tell nobody."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc

Fields = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Fault:
    """Why something failed: the reason of the contract's table, and what its caller is told."""

    reason: str
    message: str


class Span:
    """One call, or a part of one. Times are in seconds on the monotonic clock."""

    trace_id = ""
    """32 hexadecimal digits; empty where nothing is traced."""

    def part(self, kind: str, began: float) -> "Span":
        """A span inside this one."""
        return self

    def batch(self, members: Sequence["Span"], fields: Fields, began: float, failure: Exception | None) -> None:
        """Tells of the batch that has computed the requests of these spans until now, this one's among them."""

    def stages(self, began: float, seconds: Mapping[str, float]) -> None:
        """Stages that have followed one another."""

    def end(self, code: grpc.StatusCode, fault: Fault | None, fields: Fields) -> None:
        """What became of it, and what else is known."""


class Tracer:
    """Makes the spans of calls."""

    def call(self, method: str, metadata: Mapping[str, str | bytes]) -> Span:
        """`method` is `package.Service/Method`; the metadata may name the caller's span."""
        return NO_SPAN

    def close(self) -> None:
        """Sends what is left; may take two seconds."""


NO_SPAN = Span()
