"""What is known of a call while it is answered, and told at its end: to its trace and to the access log."""

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import grpc

from damoserve_server.errors import DamoserveError
from damoserve_server.telemetry.spans import NO_SPAN, Fault, Fields, Span, Tracer

MAX_NAME_LENGTH = 128
"""Of what a caller has named; the rest is not told."""
OWN_SERVICES = "grpc."
"""Health and reflection: probes would be most of what is told, and their watches last."""

access_log = logging.getLogger("damoserve_server.access_log")


@dataclass(eq=False)
class CallRecord:
    """One call, or one part of it: a frame or message of a stream, or an image of several."""

    method: str = ""
    span: Span = NO_SPAN
    logged: bool = False
    known: dict[str, str | int | float] = field(default_factory=dict)
    kind: str = "call"
    fault: Fault | None = None
    _began: float = field(default_factory=time.monotonic)
    _stages: Mapping[str, float] = field(default_factory=dict)

    @property
    def watched(self) -> bool:
        return self.logged or self.span is not NO_SPAN

    def asked(self, **names: str | None) -> None:
        """What the caller has named. Until it is answered, profile and model are those that were asked for."""
        if self.watched:
            self.known |= {name: value[:MAX_NAME_LENGTH] for name, value in names.items() if value}

    def answered(self, known: Fields, began: float, stages: Mapping[str, float]) -> None:
        """What is known with the answer; `stages` are the seconds of each, one after the other from `began` on."""
        if self.watched:
            self.known |= known
            self._stages = stages
            self.span.stages(began, stages)

    def dropped(self, outcome: str) -> None:
        """A frame that is not computed."""
        if self.watched:
            self.known["outcome"] = outcome

    @contextmanager
    def part(self, kind: str, identifier: str | int, began: float) -> Iterator["CallRecord"]:
        """What is done inside belongs to a part of this, and so do its errors. `began` is on the monotonic clock."""
        if not self.watched:
            yield self
            return
        # As text: numbers of frames have 64 bits, and of those of a trace one is the sign.
        name = str(identifier)[:MAX_NAME_LENGTH]
        known = {"request_id": self.known["request_id"], f"{kind}_id": name}
        inner = CallRecord(self.method, self.span.part(kind, began), self.logged, known, kind, _began=began)
        token = current.set(inner)
        code = grpc.StatusCode.INTERNAL
        try:
            yield inner
            code = grpc.StatusCode.OK
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except DamoserveError as error:
            code = error.code
            inner.failed(error)
            raise
        finally:
            current.reset(token)
            inner.ended(code)

    def failed(self, error: DamoserveError) -> None:
        """Keeps nothing of the error itself: its traceback refers to whoever keeps it, and to the request."""
        if self.watched:
            self.fault = Fault(error.reason, str(error))

    def ended(self, code: grpc.StatusCode) -> None:
        if not self.watched:
            return
        self.span.end(code, self.fault, self.known)
        if self.logged:
            self._log(code)

    def _log(self, code: grpc.StatusCode) -> None:
        line: dict[str, Any] = {
            "method": self.method,
            **self.known,
            "trace_id": self.span.trace_id,
            "code": code.name,
            "reason": self.fault.reason if self.fault is not None else "",
            "seconds": round(time.monotonic() - self._began, 6),
            "stage_seconds": {stage: round(seconds, 6) for stage, seconds in self._stages.items()},
        }
        told = {name: value for name, value in line.items() if value not in ("", {})}
        access_log.info(self.kind, extra={"fields": told})


request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the call that is being answered; the tasks of a call inherit it."""

UNWATCHED = CallRecord()
current: ContextVar[CallRecord] = ContextVar("current", default=UNWATCHED)
"""Of what is being answered; the tasks of a call inherit it."""


class Telemetry:
    """Makes the records of calls."""

    def __init__(self, tracer: Tracer, access_log: bool) -> None:
        self._tracer = tracer
        self._logged = access_log

    def call(self, method: str, request_id: str, metadata: Mapping[str, str | bytes]) -> CallRecord:
        """The record of a call that begins, from now on the current one. `method` is `package.Service/Method`."""
        record = UNWATCHED
        if not method.startswith(OWN_SERVICES):
            span = self._tracer.call(method, metadata)
            if self._logged or span is not NO_SPAN:
                record = CallRecord(method, span, self._logged, {"request_id": request_id})
        current.set(record)
        return record

    def close(self) -> None:
        """Tells what is left; may take two seconds."""
        self._tracer.close()
