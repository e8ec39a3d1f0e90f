"""Gives every call a request id, its metrics, its record in traces and log, and errors as `google.rpc.Status`.

The interceptor replaces the handler of every method by one of its own, which calls the method. So it sees what gRPC
does not show an interceptor: the messages of a stream, errors, and how a call ends.

**Errors are set, not aborted.** The usual way to fail a call is `context.abort`, which raises an exception through
the method. gRPC keeps that exception after the call; its traceback holds the frames of the method, and they hold
the request with its image. All of it stays in memory until Python's garbage collector runs. So an error is caught
here and loses its traceback (`to_known`), and its code, message and details are set on the context. Then the
handler returns None, as if nothing had happened: gRPC sends what was set, and no answer where the code is not OK.
Only services of libraries abort, such as health.

**Messages are parsed here, not by gRPC**, to which the handler is given without a deserializer: gRPC would answer
bytes that it cannot read with UNKNOWN, and with a traceback in the log.

**A stream waits a moment before it ends well.** When a client disappears, gRPC ends the stream of its messages
first, as if all were sent, and cancels the call a little later. Without that moment the call would be counted as
OK.
"""

from __future__ import annotations  # gRPC's classes are generic for type checkers only

import asyncio
import inspect
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError
from prometheus_client import Counter

from damoserve_server.detection.outcomes import REQUEST_METHODS, RequestAccounting
from damoserve_server.errors import DamoserveError, MessageUndecodable
from damoserve_server.metrics.calls import Calls
from damoserve_server.metrics.metrics import Metrics
from damoserve_server.rpc.handlers import HANDLER_MAKERS, METHOD_TYPES
from damoserve_server.rpc.status import to_known, to_status
from damoserve_server.telemetry.records import CallRecord, Telemetry, request_id

REQUEST_ID = "x-request-id"
MAX_REQUEST_ID_LENGTH = 128
"""The longest id of a caller that is used, in characters."""
STATUS_DETAILS = "grpc-status-details-bin"
CANCELLATION_GRACE_SECONDS = 0.005
"""How long a stream waits at its end for gRPC to cancel the call of a client that is gone."""
if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every method. A stream counts as an open call until it ends, a health watch or reflection too."""

    def __init__(self, metrics: Metrics, requests: RequestAccounting, telemetry: Telemetry) -> None:
        self._metrics = metrics
        self._requests = requests
        self._telemetry = telemetry

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        kind = None if handler is None else METHOD_TYPES.get((handler.request_streaming, handler.response_streaming))
        if handler is None or kind is None:
            return handler
        service, _, name = handler_call_details.method.lstrip("/").partition("/")
        series = self._metrics.calls.of((kind, service, name))
        call = _Call(handler, f"{service}/{name}", series, self._requests, self._telemetry)
        _, make = HANDLER_MAKERS[handler.request_streaming, handler.response_streaming]
        # Without a deserializer: messages are parsed by `_Call`.
        wrapped: Handler = make(call.answer, response_serializer=handler.response_serializer)
        return wrapped


@dataclass(frozen=True)
class _Call:
    """Answers the calls of one method."""

    handler: Handler
    method: str
    series: Calls
    requests: RequestAccounting
    telemetry: Telemetry

    async def answer(self, request: Any, context: Context) -> Any:
        metadata = dict(context.invocation_metadata() or ())
        identifier = _choose_request_id(metadata)
        request_id.set(identifier)
        record = self.telemetry.begin_call(self.method, identifier, metadata)
        context.set_trailing_metadata(((REQUEST_ID, identifier),))
        with self._counted(context, record):
            try:
                if not self.handler.response_streaming:
                    return await self._answer_one(request, context)
                await context.send_initial_metadata(((REQUEST_ID, identifier),))
                await self._answer_stream(request, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                known = to_known(error, self.method)
                record.failed(known)
                self._set_error(known, identifier, context)

    async def _answer_one(self, request: bytes, context: Context) -> Any:
        behaviour: Any = self.handler.unary_unary
        answer = await behaviour(self._parse(request), context)
        self.series.sent.inc()
        return answer

    async def _answer_stream(self, request: Any, context: Context) -> None:
        streaming = self.handler.request_streaming
        behaviour: Any = self.handler.stream_stream if streaming else self.handler.unary_stream
        received = self._received(request) if streaming else self._parse(request)
        counting = _CountingContext(context, self.series.sent)
        answers = behaviour(received, counting)
        if inspect.isasyncgen(answers):
            async with aclosing(answers):  # at once, also when the client has gone during a write
                async for answer in answers:
                    await counting.write(answer)
        else:
            await answers
        await asyncio.sleep(CANCELLATION_GRACE_SECONDS)

    async def _received(self, requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for request in requests:
            yield self._parse(request)

    def _parse(self, request: bytes) -> Any:
        self.series.received.inc()
        parse = self.handler.request_deserializer
        if parse is None:
            return request
        try:
            return parse(request)
        except DecodeError:
            raise MessageUndecodable("", "the request is not the message that the method takes") from None

    @contextmanager
    def _counted(self, context: Context, record: CallRecord) -> Iterator[None]:
        self.series.begin()
        started = time.monotonic()
        code = grpc.StatusCode.UNKNOWN
        try:
            yield
            code = context.code() or grpc.StatusCode.OK
        except asyncio.CancelledError:
            remaining: float | None = context.time_remaining()
            expired = remaining is not None and remaining <= 0
            code = grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:
            code = context.code()
            raise
        finally:
            self.series.end(code, time.monotonic() - started)
            record.ended(code)

    def _set_error(self, error: DamoserveError, identifier: str, context: Context) -> None:
        """Sets the error on the context, which gRPC sends when the handler returns."""
        self.requests.count_reason(error)
        if self.method in REQUEST_METHODS:
            self.requests.count_unread(error)
        context.set_code(error.code)
        context.set_details(str(error))
        context.set_trailing_metadata(
            ((STATUS_DETAILS, to_status(error).SerializeToString()), (REQUEST_ID, identifier))
        )


class _CountingContext:
    """The context of a stream. Counts the answers that are written, and takes a failed write for a cancelled call."""

    def __init__(self, context: Context, sent: Counter) -> None:
        self._context = context
        self._sent = sent

    async def write(self, message: Any) -> None:
        try:
            await self._context.write(message)
        except grpc.aio.InternalError as error:  # the client is gone; gRPC cancels the call shortly
            raise asyncio.CancelledError from error
        self._sent.inc()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _choose_request_id(metadata: Mapping[str, str | bytes]) -> str:
    """Returns the caller's id if it is usable, else a new one."""
    sent = metadata.get(REQUEST_ID)
    usable = isinstance(sent, str) and 0 < len(sent) <= MAX_REQUEST_ID_LENGTH
    return str(sent) if usable else f"{random.getrandbits(128):032x}"
