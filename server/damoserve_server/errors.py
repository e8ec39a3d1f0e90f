"""The errors of a call. Each has the gRPC code and the reason that the table of the contract lists.

DamoserveError
├── InvalidRequest               INVALID_ARGUMENT, names the field
│   ├── ImageEmpty
│   ├── ImageUndecodable
│   ├── ImageTooLarge
│   ├── ArgumentOutOfRange
│   ├── ProfileAndTier
│   ├── TensorInvalid
│   ├── ParameterInvalid
│   ├── MessageUndecodable
│   └── StreamOutOfOrder
├── NotFound                     NOT_FOUND, names the resource
│   ├── ModelNotFound
│   ├── ProfileNotFound
│   ├── VersionNotFound
│   └── AliasNotFound
├── ProfileUnavailable           FAILED_PRECONDITION
├── AccuracyUnavailable          FAILED_PRECONDITION
├── DeadlineUnreachable          DEADLINE_EXCEEDED
├── DeadlineExpired              DEADLINE_EXCEEDED
├── StreamIdle                   DEADLINE_EXCEEDED
├── QueueFull                    RESOURCE_EXHAUSTED, says when to try again
├── TooManyStreams               RESOURCE_EXHAUSTED, says when to try again
├── WorkersLost                  UNAVAILABLE, says when to try again
├── Unauthenticated              UNAUTHENTICATED
│   ├── TokenMissing
│   └── TokenInvalid
├── PermissionDenied             PERMISSION_DENIED
├── RateLimited                  RESOURCE_EXHAUSTED, says when to try again
├── ConcurrencyLimited           RESOURCE_EXHAUSTED
├── ShuttingDown                 UNAVAILABLE
├── ProfileLoading               UNAVAILABLE, says when to try again
├── OperationRunning             ABORTED, says when to try again
├── ProfileRefused               FAILED_PRECONDITION
├── VersionRefused               FAILED_PRECONDITION
├── RepositoryUnusable           FAILED_PRECONDITION
├── NotOffered                   UNIMPLEMENTED
└── InternalError                INTERNAL

`rpc.status` turns them into `google.rpc.Status`; nobody else needs to know about gRPC.
"""

import math
from collections.abc import Iterator
from typing import ClassVar

import grpc


class DamoserveError(Exception):
    """An error that a caller sees. The message is for people; `details` repeats its variable parts for programs."""

    code: grpc.StatusCode
    """The gRPC code. Set by the class, but for QueueFull where Triton's clients expect another."""
    reason: ClassVar[str]
    """The reason in the table of the contract, for programs."""
    retry_after: float | None = None
    """Seconds after which the same request may succeed."""
    field: str | None = None
    """The path of the offending field in the request."""
    name: str | None = None
    """The name of the resource that is not there."""
    resource_type: ClassVar[str] = ""
    """The type of that resource."""

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.details = {name: str(value) for name, value in details.items()}


class InvalidRequest(DamoserveError):
    """A request that is wrong in itself; `field` is the path of what is wrong."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, field: str, message: str, **details: object) -> None:
        super().__init__(message, **details)
        self.field = field


class ImageEmpty(InvalidRequest):
    reason = "IMAGE_EMPTY"


class ImageUndecodable(InvalidRequest):
    reason = "IMAGE_UNDECODABLE"


class ImageTooLarge(InvalidRequest):
    reason = "IMAGE_TOO_LARGE"


class ArgumentOutOfRange(InvalidRequest):
    reason = "ARGUMENT_OUT_OF_RANGE"


class ProfileAndTier(InvalidRequest):
    reason = "PROFILE_AND_TIER"


class MessageUndecodable(InvalidRequest):
    reason = "MESSAGE_UNDECODABLE"


class StreamOutOfOrder(InvalidRequest):
    reason = "STREAM_OUT_OF_ORDER"


class TensorInvalid(InvalidRequest):
    reason = "TENSOR_INVALID"


class ParameterInvalid(InvalidRequest):
    reason = "PARAMETER_INVALID"


class NotFound(DamoserveError):
    """A request for something that is not there; `name` is its name."""

    code = grpc.StatusCode.NOT_FOUND

    def __init__(self, name: str, message: str, **details: object) -> None:
        super().__init__(message, **details)
        self.name = name


class ModelNotFound(NotFound):
    reason = "MODEL_NOT_FOUND"
    resource_type = "damoserve.v1.Model"


class ProfileNotFound(NotFound):
    reason = "PROFILE_NOT_FOUND"
    resource_type = "damoserve.v1.Profile"


class VersionNotFound(NotFound):
    reason = "VERSION_NOT_FOUND"
    resource_type = "damoserve.v1.Version"


class AliasNotFound(NotFound):
    reason = "ALIAS_NOT_FOUND"
    resource_type = "damoserve.v1.Alias"


class ProfileUnavailable(DamoserveError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "PROFILE_UNAVAILABLE"


class AccuracyUnavailable(DamoserveError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "ACCURACY_UNAVAILABLE"


class DeadlineUnreachable(DamoserveError):
    """No profile can answer by the deadline, so the request is refused at once."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_UNREACHABLE"

    def __init__(self, expected: float, budget: float) -> None:
        """`expected` and `budget` are in seconds from now."""
        expected_ms, budget_ms = f"{1000 * expected:.1f}", f"{1000 * budget:.1f}"
        message = f"an answer is expected in {expected_ms} ms; only {budget_ms} ms are left"
        super().__init__(message, expected_ms=expected_ms, budget_ms=budget_ms)


class DeadlineExpired(DamoserveError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXPIRED"


class StreamIdle(DamoserveError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "STREAM_IDLE"


class QueueFull(DamoserveError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "QUEUE_FULL"

    def __init__(self, message: str, retry_after: float, **details: object) -> None:
        super().__init__(message, **details)
        self.retry_after = retry_after


class TooManyStreams(DamoserveError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "TOO_MANY_STREAMS"
    retry_after = 1.0

    def __init__(self, limit: int) -> None:
        super().__init__(f"the server holds {limit} streams already; try again later", limit=limit)


class WorkersLost(DamoserveError):
    """The worker that computed the request hung or died, and is being replaced."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "WORKERS_LOST"
    retry_after = 1.0

    def __init__(self) -> None:
        super().__init__("a worker of the server failed and is being replaced; try again")


class Unauthenticated(DamoserveError):
    code = grpc.StatusCode.UNAUTHENTICATED


class TokenMissing(Unauthenticated):
    reason = "TOKEN_MISSING"

    def __init__(self) -> None:
        super().__init__("this server wants a token; send it as `authorization: Bearer TOKEN` in the call's metadata")


class TokenInvalid(Unauthenticated):
    reason = "TOKEN_INVALID"

    def __init__(self) -> None:
        super().__init__("the server does not know this token")


class PermissionDenied(DamoserveError):
    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"

    def __init__(self, token: str, right: str) -> None:
        super().__init__(f"the token {token!r} does not have the right {right!r}", token=token, right=right)


class RateLimited(DamoserveError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "RATE_LIMITED"

    def __init__(self, token: str, retry_after: float) -> None:
        wait_ms = math.ceil(1000 * retry_after)
        message = f"the token {token!r} has used up its rate of calls; the next may come in {wait_ms} ms"
        super().__init__(message, token=token, wait_ms=wait_ms)
        self.retry_after = retry_after


class ConcurrencyLimited(DamoserveError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "CONCURRENCY_LIMITED"

    def __init__(self, token: str, limit: int) -> None:
        message = f"the token {token!r} has {limit} calls open, as many as it may; wait until one has ended"
        super().__init__(message, token=token, limit=limit)


class ShuttingDown(DamoserveError):
    code = grpc.StatusCode.UNAVAILABLE
    reason = "SHUTTING_DOWN"

    def __init__(self) -> None:
        super().__init__("the server is shutting down; try another one")


class ProfileLoading(DamoserveError):
    """The profile does not serve yet."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "PROFILE_LOADING"
    retry_after = 1.0


class OperationRunning(DamoserveError):
    """Another change of the same model is not done yet."""

    code = grpc.StatusCode.ABORTED
    reason = "OPERATION_RUNNING"
    retry_after = 1.0


class ProfileRefused(DamoserveError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "PROFILE_REFUSED"


class VersionRefused(DamoserveError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "VERSION_REFUSED"


class RepositoryUnusable(DamoserveError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "REPOSITORY_UNUSABLE"


class NotOffered(DamoserveError):
    code = grpc.StatusCode.UNIMPLEMENTED
    reason = "NOT_OFFERED"


class InternalError(DamoserveError):
    """A fault of the server. It stands for every unexpected exception, and says nothing about it."""

    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"


def forget_origin(error: BaseException) -> None:
    """Removes the traceback and the causes of an error that is handled.

    A frame in the traceback holds the future that holds the error: in this circle request, image and profile would stay
    until a garbage collection.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None


def reasons() -> Iterator[str]:
    """Yields the reasons of all errors: those in the table of the contract."""
    return (kind.reason for kind in _kinds())


def codes() -> Iterator[grpc.StatusCode]:
    """Yields the codes of all errors."""
    return (kind.code for kind in _kinds())


def _kinds() -> Iterator[type[DamoserveError]]:
    unvisited: list[type[DamoserveError]] = [DamoserveError]
    while unvisited:
        kind = unvisited.pop()
        unvisited.extend(kind.__subclasses__())
        if hasattr(kind, "reason"):
            yield kind
