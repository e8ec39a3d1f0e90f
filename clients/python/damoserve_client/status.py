"""From what gRPC raises, and from the status in a stream's answer, to the typed errors of `errors`."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from damoserve_client.errors import (
    AccuracyUnavailable,
    Cancelled,
    DamoserveError,
    DeadlineExceeded,
    FailedPrecondition,
    Failure,
    InvalidImage,
    InvalidRequest,
    LimitExceeded,
    ModelNotFound,
    NoAnswer,
    NotFound,
    Overloaded,
    PermissionDenied,
    ProfileNotFound,
    ProfileUnavailable,
    ServerFault,
    Unauthenticated,
    Unavailable,
)

DOMAIN = "damoserve"

_BY_REASON: Mapping[str, type[DamoserveError]] = {
    "IMAGE_EMPTY": InvalidImage,
    "IMAGE_UNDECODABLE": InvalidImage,
    "IMAGE_TOO_LARGE": InvalidImage,
    "MODEL_NOT_FOUND": ModelNotFound,
    "PROFILE_NOT_FOUND": ProfileNotFound,
    "PROFILE_UNAVAILABLE": ProfileUnavailable,
    "ACCURACY_UNAVAILABLE": AccuracyUnavailable,
    "RATE_LIMITED": LimitExceeded,
    "CONCURRENCY_LIMITED": LimitExceeded,
}

_BY_CODE: Mapping[grpc.StatusCode, type[DamoserveError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Cancelled,
}


_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_TOO_LARGE = re.compile(r"larger than max \((\d+) vs\. (\d+)\)")

# What gRPC says when the timer of the caller has run out. A server's own words have details and a request id.
_OUR_TIMER = "deadline exceeded"

# What grpc.aio makes of a status that comes during a write, whatever it was: https://github.com/grpc/grpc/issues/36066
_LOST = "Internal error from Core"


class _FailedCall(Protocol):
    """The part that every `grpc.RpcError` that a call raises offers, sync and async; gRPC has no public type for it."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


@dataclass(frozen=True)
class Attempt:
    """A call as its caller made it, to tell a silent address from a slow server."""

    address: str
    # Seconds; None: it had no end.
    timeout: float | None
    # Whether somebody at the address speaks gRPC.
    connected: Callable[[], bool]


def from_rpc_error(error: grpc.RpcError, attempt: Attempt) -> DamoserveError:
    """The typed error for what a call raised."""
    call = cast(_FailedCall, error)
    request_id = dict(call.trailing_metadata() or ()).get("x-request-id", "")
    failure = _failure(call.code(), call.details() or call.code().value[1], _status(call), str(request_id))
    if failure.code is grpc.StatusCode.DEADLINE_EXCEEDED and failure.message.lower() == _OUR_TIMER:
        return _out_of_time(failure, attempt)
    return _typed(failure)


def _out_of_time(failure: Failure, attempt: Attempt) -> DeadlineExceeded:
    """The client has stopped waiting: for a server that had taken the call, or for somebody to take it."""
    within = "in time" if attempt.timeout is None else f"within {attempt.timeout:g} s"
    if attempt.connected():
        return DeadlineExceeded(replace(failure, message=f"no answer came from {attempt.address} {within}"))
    message = f"nothing answered at {attempt.address} {within} (is it a damoserve server?)"
    return NoAnswer(replace(failure, message=message))


def from_status(status: status_pb2.Status) -> DamoserveError:
    """The typed error for a frame of a stream."""
    return _typed(_failure(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, status))


def _typed(failure: Failure) -> DamoserveError:
    # gRPC itself refuses a message above the server's limit, with the code of an overload and no reason: only its
    # text tells the two apart, and trying again would not help.
    if not failure.reason and (sizes := _TOO_LARGE.search(failure.message)):
        message = f"the request has {sizes[1]} bytes; the server accepts at most {sizes[2]}"
        return InvalidImage(replace(failure, message=message))
    if failure.message == _LOST:
        return Unavailable(replace(failure, message="the server ended the stream while a frame was being sent"))
    kind = _BY_REASON.get(failure.reason) or _BY_CODE.get(failure.code, ServerFault)
    return kind(failure)


def _failure(code: grpc.StatusCode, message: str, status: status_pb2.Status, request_id: str = "") -> Failure:
    info, retry, request = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.RequestInfo()
    for detail in status.details:
        for known in (info, retry, request):
            detail.Unpack(known)  # does nothing where the type is another
    ours = info.domain == DOMAIN
    return Failure(
        code=code,
        message=message,
        reason=info.reason if ours else "",
        metadata=dict(info.metadata) if ours else {},
        request_id=request_id or request.request_id,
        retry_after=retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None,
    )


def _status(call: _FailedCall) -> status_pb2.Status:
    try:
        return rpc_status.from_call(call) or status_pb2.Status()
    except (ValueError, DecodeError):  # details that contradict the status or are no protobuf: a proxy's, not ours
        return status_pb2.Status()
