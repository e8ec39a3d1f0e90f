"""The errors of a call, told apart by the status code and the reason that the server gave.

DamoserveError
├── InvalidRequest           INVALID_ARGUMENT: an option is out of range, or a profile and a tier are both set
│   └── InvalidImage         empty, undecodable or too large
├── NotFound                 NOT_FOUND
│   ├── ModelNotFound
│   └── ProfileNotFound
├── FailedPrecondition       FAILED_PRECONDITION
│   ├── ProfileUnavailable   the profile exists but could not be loaded
│   └── AccuracyUnavailable  no loaded profile reaches `min_accuracy`
├── DeadlineExceeded         DEADLINE_EXCEEDED: refused at once, expired while waiting, or no answer came in time
├── Overloaded               RESOURCE_EXHAUSTED: too much work waits; `retry_after` says for how long
│   └── LimitExceeded        the token has used up its rate, or has as many calls open as it may
├── Unauthenticated          UNAUTHENTICATED: the server wants a token, or does not know this one
├── PermissionDenied         PERMISSION_DENIED: the token does not have the right that the call needs
├── Unavailable              UNAVAILABLE: not reachable or shutting down, and still so after the retries
├── Cancelled                CANCELLED: the client was closed during the call
└── ServerFault              INTERNAL and every other code
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "damoserve"


@dataclass(frozen=True)
class Failure:
    """Everything that a failed call told."""

    code: grpc.StatusCode
    message: str
    # The reason and the metadata of the server's ErrorInfo; empty when the call failed before it reached the server.
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    # Finds the request in the server's log; empty when the server did not answer.
    request_id: str = ""
    # Seconds after which the server suggests to try again.
    retry_after: float | None = None


class DamoserveError(Exception):
    """A call failed. `failure` keeps everything known about it, `advice` says what to do."""

    advice: ClassVar[str] = "See the server's log."

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        return f"{self.failure.message} [{self.code.name}{self.reason and f', {self.reason}'}]"

    @property
    def code(self) -> grpc.StatusCode:
        return self.failure.code

    @property
    def reason(self) -> str:
        return self.failure.reason

    @property
    def message(self) -> str:
        return self.failure.message

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.failure.metadata

    @property
    def request_id(self) -> str:
        return self.failure.request_id

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait before the next try, where the server suggests one."""
        return self.failure.retry_after


class InvalidRequest(DamoserveError):
    """The server does not accept the request as it is."""

    advice = "Change the options of the request."


class InvalidImage(InvalidRequest):
    """The image is empty, cannot be decoded, or is larger than the server accepts."""

    advice = "Send a whole JPEG, PNG, WebP or BMP file within the server's size limits."


class NotFound(DamoserveError):
    """The server has nothing of that name."""

    advice = "`damoserve profiles` lists what the server has."


class ModelNotFound(NotFound):
    """The model is not in the server's repository."""


class ProfileNotFound(NotFound):
    """The model has no such profile."""


class FailedPrecondition(DamoserveError):
    """The server cannot serve this request in its present state."""

    advice = "`damoserve profiles` shows what is loaded, how accurate it is, and what failed."


class ProfileUnavailable(FailedPrecondition):
    """The profile exists but could not be loaded."""


class AccuracyUnavailable(FailedPrecondition):
    """No loaded profile reaches the accuracy that was asked for."""


class DeadlineExceeded(DamoserveError):
    """No answer was possible, or came, within the budget or the timeout."""

    advice = "Allow more time, or a quicker profile or tier."


class Overloaded(DamoserveError):
    """The server has too much work waiting and refused this request at once."""

    advice = "Send it again later, or send fewer requests at a time."


class LimitExceeded(Overloaded):
    """The token has used up its rate of calls, or has as many open as it may. Other callers are not affected."""

    advice = "Send fewer requests, or ask for higher limits of the token."


class Unauthenticated(DamoserveError):
    """The server wants a token, or does not know the one that was sent."""

    advice = "Give a token of this server: `token=`, --token-file or DAMOSERVE_TOKEN."


class PermissionDenied(DamoserveError):
    """The token does not have the right that the call needs."""

    advice = "Use a token with this right."


class Unavailable(DamoserveError):
    """The server cannot be reached or is shutting down; the client has retried already."""

    advice = "Check that the server runs, that the address is right, and whether both sides use TLS."


class Cancelled(DamoserveError):
    """The call was cancelled, for example because the client was closed."""

    advice = "Send it again."


class ServerFault(DamoserveError):
    """The server failed, or answered in a way that it should not."""


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

# What grpc.aio makes of a status that comes during a write, whatever it was: https://github.com/grpc/grpc/issues/36066
_LOST = "Internal error from Core"


class _FailedCall(Protocol):
    """What every `grpc.RpcError` that a call raises offers, sync and async; gRPC has no public type for it."""

    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


def from_rpc_error(error: grpc.RpcError) -> DamoserveError:
    """The typed error for what a call raised."""
    call = cast(_FailedCall, error)
    request_id = dict(call.trailing_metadata() or ()).get("x-request-id", "")
    return _typed(_failure(call.code(), call.details() or call.code().value[1], _status(call), str(request_id)))


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
