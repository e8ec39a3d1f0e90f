"""Around every unary call: a request id, the metrics, and errors as `google.rpc.Status`."""

from __future__ import annotations  # gRPC's classes are generic for type checkers only

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from damoserve_server.convert import to_duration
from damoserve_server.errors import (
    DamoserveError,
    InternalError,
    InvalidRequest,
    NotFound,
    OperationRunning,
    ProfileLoading,
    QueueFull,
)
from damoserve_server.metrics import Metrics

DOMAIN = "damoserve"
REQUEST_ID = "x-request-id"
MAX_REQUEST_ID_LENGTH = 128
STATUS_DETAILS = "grpc-status-details-bin"

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Streams (health watches, reflection) pass untouched: they stay open as long as the client likes."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        behaviour: Callable[[Any, Context], Awaitable[Any]] = handler.unary_unary  # type: ignore[assignment]
        labels = ("unary", *handler_call_details.method.lstrip("/").split("/"))

        async def answer(request: Any, context: Context) -> Any:
            request_id = _request_id(context)
            context.set_trailing_metadata(((REQUEST_ID, request_id),))
            with self._observed(labels, context):
                try:
                    return await behaviour(request, context)
                except DamoserveError as error:
                    await self._fail(error, request_id, context)
                except grpc.aio.AbortError:
                    raise
                except Exception:
                    log.exception("request %s to %s failed", request_id, handler_call_details.method)
                    await self._fail(InternalError("internal error"), request_id, context)

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    @contextmanager
    def _observed(self, labels: tuple[str, ...], context: Context) -> Iterator[None]:
        self._metrics.started.labels(*labels).inc()
        started = time.monotonic()
        code = grpc.StatusCode.UNKNOWN
        try:
            yield
            code = grpc.StatusCode.OK
        except asyncio.CancelledError:
            remaining: float | None = context.time_remaining()
            expired = remaining is not None and remaining <= 0
            code = grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED
            raise
        except grpc.aio.AbortError:
            code = context.code()
            raise
        finally:
            self._metrics.handled.labels(*labels, code.name).inc()
            self._metrics.handling.labels(*labels).observe(time.monotonic() - started)

    async def _fail(self, error: DamoserveError, request_id: str, context: Context) -> None:
        self._metrics.refused.labels(error.reason).inc()
        metadata = ((STATUS_DETAILS, to_status(error).SerializeToString()), (REQUEST_ID, request_id))
        await context.abort(error.code, str(error), metadata)


def _request_id(context: Context) -> str:
    """The caller's id if it is usable, else a new one."""
    given = dict(context.invocation_metadata() or ()).get(REQUEST_ID)
    return given if isinstance(given, str) and 0 < len(given) <= MAX_REQUEST_ID_LENGTH else uuid.uuid4().hex


def to_status(error: DamoserveError) -> status_pb2.Status:
    """The error as the contract promises it: ErrorInfo, and one detail that fits its kind."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.details)]
    match error:
        case InvalidRequest():
            violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=str(error))
            details.append(error_details_pb2.BadRequest(field_violations=[violation]))
        case NotFound():
            details.append(
                error_details_pb2.ResourceInfo(
                    resource_type=error.resource_type, resource_name=error.name, description=str(error)
                )
            )
        case QueueFull() | ProfileLoading() | OperationRunning():
            details.append(error_details_pb2.RetryInfo(retry_delay=to_duration(error.retry_after)))
    packed = []
    for detail in details:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=error.code.value[0], message=str(error), details=packed)
