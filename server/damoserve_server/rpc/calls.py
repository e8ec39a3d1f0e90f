"""Around every call: a request id, the metrics, and errors as `google.rpc.Status`."""

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
from damoserve_server.rpc.handlers import MAKERS, TYPES
from damoserve_server.rpc.status import to_known, to_status
from damoserve_server.telemetry.records import CallRecord, Telemetry, request_id

REQUEST_ID = "x-request-id"
MAX_REQUEST_ID_LENGTH = 128
STATUS_DETAILS = "grpc-status-details-bin"
CANCELLATION_GRACE_SECONDS = 0.005
"""At the end of a stream a client that is gone looks like one that is done, until gRPC cancels the call."""
if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Streams are counted as long as they are open: health watches and reflection stay so while the client likes."""

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
        kind = None if handler is None else TYPES.get((handler.request_streaming, handler.response_streaming))
        if handler is None or kind is None:
            return handler
        service, _, name = handler_call_details.method.lstrip("/").partition("/")
        series = self._metrics.calls.of((kind, service, name))
        call = _Call(handler, f"{service}/{name}", series, self._requests, self._telemetry)
        _, make = MAKERS[handler.request_streaming, handler.response_streaming]
        # Without a deserializer: gRPC answers bytes that it cannot read with UNKNOWN and a traceback in the log.
        wrapped: Handler = make(call.answer, response_serializer=handler.response_serializer)
        return wrapped


@dataclass(frozen=True)
class _Call:
    """One call to a method."""

    handler: Handler
    method: str
    series: Calls
    requests: RequestAccounting
    telemetry: Telemetry

    async def answer(self, request: Any, context: Context) -> Any:
        metadata = dict(context.invocation_metadata() or ())
        identifier = _request_id(metadata)
        request_id.set(identifier)
        record = self.telemetry.call(self.method, identifier, metadata)
        context.set_trailing_metadata(((REQUEST_ID, identifier),))
        with self._observed(context, record):
            try:
                if not self.handler.response_streaming:
                    return await self._single(request, context)
                await context.send_initial_metadata(((REQUEST_ID, identifier),))
                await self._stream(request, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                known = to_known(error, self.method)
                record.failed(known)
                self._fail(known, identifier, context)

    async def _single(self, request: bytes, context: Context) -> Any:
        behaviour: Any = self.handler.unary_unary
        answer = await behaviour(self._parse(request), context)
        self.series.sent.inc()
        return answer

    async def _stream(self, request: Any, context: Context) -> None:
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
    def _observed(self, context: Context, record: CallRecord) -> Iterator[None]:
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

    def _fail(self, error: DamoserveError, identifier: str, context: Context) -> None:
        """Not by `context.abort`: gRPC keeps what that raises, and so the request, until a garbage collection."""
        self.requests.count_reason(error)
        if self.method in REQUEST_METHODS:
            self.requests.count_unread(error)
        context.set_code(error.code)
        context.set_details(str(error))
        context.set_trailing_metadata(
            ((STATUS_DETAILS, to_status(error).SerializeToString()), (REQUEST_ID, identifier))
        )


class _CountingContext:
    """The context of a stream; counts the answers, and knows a client that is gone."""

    def __init__(self, context: Context, sent: Counter) -> None:
        self._context = context
        self._sent = sent

    async def write(self, message: Any) -> None:
        try:
            await self._context.write(message)
        except grpc.aio.InternalError as error:  # gRPC's word for it, shortly before it cancels the call
            raise asyncio.CancelledError from error
        self._sent.inc()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _request_id(metadata: Mapping[str, str | bytes]) -> str:
    """The caller's id if it is usable, else a new one."""
    given = metadata.get(REQUEST_ID)
    usable = isinstance(given, str) and 0 < len(given) <= MAX_REQUEST_ID_LENGTH
    return str(given) if usable else f"{random.getrandbits(128):032x}"
