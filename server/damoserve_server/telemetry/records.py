"""Collects what is known of a call while it is answered; at its end its trace and the access log get it."""

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
"""Characters of a name from a caller that are recorded; the rest is cut off."""
UNRECORDED_SERVICES = "grpc."
"""The package of health and reflection, which are not recorded: probes would be most of the log, and watches last."""

access_log = logging.getLogger("damoserve_server.access_log")


@dataclass(eq=False)
class CallRecord:
    """One call, or one part of it: a frame or message of a stream, or an image of several."""

    method: str = ""
    span: Span = NO_SPAN
    logged: bool = False
    fields: dict[str, str | int | float] = field(default_factory=dict)
    kind: str = "call"
    fault: Fault | None = None
    _began: float = field(default_factory=time.monotonic)
    _stages: Mapping[str, float] = field(default_factory=dict)

    @property
    def recording(self) -> bool:
        """Says whether anything is recorded; if not, nothing need be collected."""
        return self.logged or self.span is not NO_SPAN

    def asked(self, **names: str | None) -> None:
        """Notes what the caller has named: profile and model, until an answer says which they were."""
        if self.recording:
            self.fields |= {name: value[:MAX_NAME_LENGTH] for name, value in names.items() if value}

    def answered(self, fields: Fields, began: float, stages: Mapping[str, float]) -> None:
        """Notes what the answer says. `stages` are the seconds of each, one after the other from `began` on."""
        if self.recording:
            self.fields |= fields
            self._stages = stages
            self.span.stages(began, stages)

    def dropped(self, outcome: str) -> None:
        """Notes that a frame was not computed; `outcome` says through whose fault."""
        if self.recording:
            self.fields["outcome"] = outcome

    @contextmanager
    def part(self, kind: str, identifier: str | int, began: float) -> Iterator["CallRecord"]:
        """Makes a part of this record the current one: what is done inside is noted there, and errors too.

        `began` is on the monotonic clock.
        """
        if not self.recording:
            yield self
            return
        # As text: numbers of frames have 64 bits, and of those of a trace one is the sign.
        name = str(identifier)[:MAX_NAME_LENGTH]
        fields = {"request_id": self.fields["request_id"], f"{kind}_id": name}
        inner = CallRecord(self.method, self.span.part(kind, began), self.logged, fields, kind, _began=began)
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
        """Notes the reason and message of an error, and not the error: its traceback holds the request."""
        if self.recording:
            self.fault = Fault(error.reason, str(error))

    def ended(self, code: grpc.StatusCode) -> None:
        """Ends the span, and writes the line of the access log."""
        if not self.recording:
            return
        self.span.end(code, self.fault, self.fields)
        if self.logged:
            self._log(code)

    def _log(self, code: grpc.StatusCode) -> None:
        line: dict[str, Any] = {
            "method": self.method,
            **self.fields,
            "trace_id": self.span.trace_id,
            "code": code.name,
            "reason": self.fault.reason if self.fault is not None else "",
            "seconds": round(time.monotonic() - self._began, 6),
            "stage_seconds": {stage: round(seconds, 6) for stage, seconds in self._stages.items()},
        }
        filled = {name: value for name, value in line.items() if value not in ("", {})}
        access_log.info(self.kind, extra={"fields": filled})


request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request id of the call that is being answered; the tasks of a call inherit it."""

NO_RECORD = CallRecord()
"""The record of what is neither traced nor logged."""
current: ContextVar[CallRecord] = ContextVar("current", default=NO_RECORD)
"""The record of what is being answered, a call or a part of one; the tasks of a call inherit it."""


class Telemetry:
    """Makes the records of calls."""

    def __init__(self, tracer: Tracer, access_log: bool) -> None:
        self._tracer = tracer
        self._logged = access_log

    def begin_call(self, method: str, request_id: str, metadata: Mapping[str, str | bytes]) -> CallRecord:
        """Returns the record of a call that begins, now the current one. `method` is `package.Service/Method`."""
        record = NO_RECORD
        if not method.startswith(UNRECORDED_SERVICES):
            span = self._tracer.start_call(method, metadata)
            if self._logged or span is not NO_SPAN:
                record = CallRecord(method, span, self._logged, {"request_id": request_id})
        current.set(record)
        return record

    def close(self) -> None:
        """Sends the spans that are left; may take two seconds."""
        self._tracer.close()
