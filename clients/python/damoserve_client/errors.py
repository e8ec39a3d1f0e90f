"""The errors of a call, told apart by the status code and the reason that the server gave.

DamoserveError
├── InvalidRequest           INVALID_ARGUMENT: an option is out of range, or a profile and a tier are both set
│   └── InvalidImage         empty, undecodable or too large
│       └── InvalidArray     not RGB pixels, uint8 [height, width, 3]; found by the client, nothing was sent
├── NotFound                 NOT_FOUND
│   ├── ModelNotFound
│   └── ProfileNotFound
├── FailedPrecondition       FAILED_PRECONDITION
│   ├── ProfileUnavailable   the profile exists but could not be loaded
│   └── AccuracyUnavailable  no loaded profile reaches `min_accuracy`
├── DeadlineExceeded         DEADLINE_EXCEEDED: refused at once, expired while waiting, or no answer came in time
│   └── NoAnswer             nobody has spoken gRPC at the address within the timeout
├── Overloaded               RESOURCE_EXHAUSTED: too much work waits; `retry_after` says for how long
│   └── LimitExceeded        the token has used up its rate, or has as many calls open as it may
├── Unauthenticated          UNAUTHENTICATED: the server wants a token, or does not know this one
├── PermissionDenied         PERMISSION_DENIED: the token does not have the right that the call needs
├── Unavailable              UNAVAILABLE: not reachable or shutting down, and still so after the retries
├── Cancelled                CANCELLED: the client was closed during the call
└── ServerFault              INTERNAL and every other code
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import grpc

from damoserve_client.terminal import plain


@dataclass(frozen=True)
class Failure:
    """Everything that a failed call told: the gRPC code, a message, and what the server said for programs.

    >>> try:
    ...     client.profile("int9")
    ... except DamoserveError as error:
    ...     print(error.failure.code.name, error.failure.reason, error.failure.request_id)
    NOT_FOUND PROFILE_NOT_FOUND request-7
    """

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
    """A call failed. `failure` has everything that is known about it, and `advice` says what to do.

    >>> try:
    ...     client.profile("int9")
    ... except DamoserveError as error:
    ...     print(error.reason, "-", error.advice)
    PROFILE_NOT_FOUND - `damoserve profiles` lists what the server has.
    """

    advice: ClassVar[str] = "See the server's log."

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        # The text came from elsewhere, and this is what a terminal gets to see.
        return plain(f"{self.failure.message} [{self.code.name}{self.reason and f', {self.reason}'}]")

    @property
    def code(self) -> grpc.StatusCode:
        """The gRPC status of the call."""
        return self.failure.code

    @property
    def reason(self) -> str:
        """The reason that the server named, from the table in `detection.proto`; empty if the call never got there."""
        return self.failure.reason

    @property
    def message(self) -> str:
        """The server's sentence as it came; `str` of the error is fit for a terminal."""
        return self.failure.message

    @property
    def metadata(self) -> Mapping[str, str]:
        """The variable parts of the message, for programs, such as `expected_ms`."""
        return self.failure.metadata

    @property
    def request_id(self) -> str:
        """Identifier that finds the request in the server's log; empty if the server did not answer."""
        return self.failure.request_id

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait before the next try, where the server suggests one."""
        return self.failure.retry_after


class InvalidRequest(DamoserveError):
    """The server does not accept the request as it is, for example because an option is out of range.

    >>> try:
    ...     client.detect("smear.jpg", score_threshold=2.0)
    ... except InvalidRequest as error:
    ...     print(error.reason)
    ARGUMENT_OUT_OF_RANGE
    """

    advice = "Change the options of the request."


class InvalidImage(InvalidRequest):
    """The image is empty, cannot be decoded, or is larger than the server accepts.

    >>> try:
    ...     client.detect(b"no picture")
    ... except InvalidImage as error:
    ...     print(error.reason)
    IMAGE_UNDECODABLE
    """

    advice = "Send a whole JPEG, PNG, WebP or BMP file within the server's size limits."


class InvalidArray(InvalidImage):
    """The array does not hold RGB pixels, uint8 `[height, width, 3]`; nothing was sent.

    >>> try:
    ...     client.detect(memoryview(bytes(6)).cast("B", (2, 3)))
    ... except InvalidArray as error:
    ...     print(error.message)
    an array must hold RGB pixels, uint8 [height, width, 3]; this one is uint8 [2, 3]
    """

    advice = "Give uint8 [height, width, 3] in the order RGB; OpenCV's BGR becomes that with `image[..., ::-1]`."


class NotFound(DamoserveError):
    """The server has nothing of that name.

    >>> try:
    ...     client.profile("int9")
    ... except NotFound as error:
    ...     print(type(error).__name__)
    ProfileNotFound
    """

    advice = "`damoserve profiles` lists what the server has."


class ModelNotFound(NotFound):
    """The model is not in the server's repository.

    >>> try:
    ...     client.profiles("cells")
    ... except ModelNotFound as error:
    ...     print(error.reason)
    MODEL_NOT_FOUND
    """


class ProfileNotFound(NotFound):
    """The model has no such profile.

    >>> try:
    ...     client.profile("int9")
    ... except ProfileNotFound as error:
    ...     print(error.reason)
    PROFILE_NOT_FOUND
    """


class FailedPrecondition(DamoserveError):
    """The server cannot serve this request in its present state.

    >>> try:
    ...     client.detect("smear.jpg", profile="pruned")
    ... except FailedPrecondition as error:
    ...     print(error.reason)
    PROFILE_UNAVAILABLE
    """

    advice = "`damoserve profiles` shows what is loaded, how accurate it is, and what failed."


class ProfileUnavailable(FailedPrecondition):
    """The profile exists but could not be loaded; `ProfileInfo.error` says why.

    >>> try:
    ...     client.detect("smear.jpg", profile="pruned")
    ... except ProfileUnavailable as error:
    ...     print(error.reason)
    PROFILE_UNAVAILABLE
    """


class AccuracyUnavailable(FailedPrecondition):
    """No loaded profile reaches the accuracy that was asked for.

    >>> try:
    ...     client.detect("smear.jpg", min_accuracy=0.99)
    ... except AccuracyUnavailable as error:
    ...     print(error.reason)
    ACCURACY_UNAVAILABLE
    """


class DeadlineExceeded(DamoserveError):
    """No answer was possible within the budget or the timeout, or none came.

    >>> try:
    ...     client.detect("smear.jpg", budget=0.001)
    ... except DeadlineExceeded as error:
    ...     print(error.reason)
    DEADLINE_UNREACHABLE
    """

    advice = "Allow more time, or a quicker profile or tier."


class NoAnswer(DeadlineExceeded):
    """Nobody has spoken gRPC at the address within the timeout, so that this says nothing about a server's speed.

    >>> try:
    ...     Client("127.0.0.1:50052").profiles(timeout=0.2)
    ... except NoAnswer as error:
    ...     print(error.advice)
    Check the address, that the server runs, and whether both sides use TLS.
    """

    advice = "Check the address, that the server runs, and whether both sides use TLS."


class Overloaded(DamoserveError):
    """The server has too much work waiting and refused this request at once; `retry_after` is in seconds.

    >>> try:
    ...     client.detect("smear.jpg")
    ... except Overloaded as error:
    ...     print(error.reason, error.retry_after)
    QUEUE_FULL 0.25
    """

    advice = "Send it again later, or send fewer requests at a time."


class LimitExceeded(Overloaded):
    """The token has used up its rate of calls, or has as many open as it may; other callers are not affected.

    >>> try:
    ...     client.detect("smear.jpg")
    ... except LimitExceeded as error:
    ...     print(error.reason, error.retry_after)
    RATE_LIMITED 0.25
    """

    advice = "Send fewer requests, or ask for higher limits of the token."


class Unauthenticated(DamoserveError):
    """The server wants a token, or does not know the one that was sent.

    >>> try:
    ...     client.profiles()
    ... except Unauthenticated as error:
    ...     print(error.reason)
    TOKEN_MISSING
    """

    advice = "Give a token of this server: `token=`, --token-file or DAMOSERVE_TOKEN."


class PermissionDenied(DamoserveError):
    """The token does not have the right that the call needs.

    >>> try:
    ...     client.detect("smear.jpg")
    ... except PermissionDenied as error:
    ...     print(error.reason)
    PERMISSION_DENIED
    """

    advice = "Use a token with this right."


class Unavailable(DamoserveError):
    """The server cannot be reached or is shutting down; the client has tried again already.

    >>> try:
    ...     client.detect("smear.jpg")
    ... except Unavailable as error:
    ...     print(error.reason)
    SHUTTING_DOWN
    """

    advice = "Check that the server runs, that the address is right, and whether both sides use TLS."


class Cancelled(DamoserveError):
    """The call was cancelled, for example because the client was closed meanwhile.

    >>> try:
    ...     client.detect("smear.jpg")
    ... except Cancelled as error:
    ...     print(error.code.name)
    CANCELLED
    """

    advice = "Send it again."


class ServerFault(DamoserveError):
    """The server failed, or answered in a way that it should not; its log has more under `request_id`.

    >>> try:
    ...     client.detect("smear.jpg")
    ... except ServerFault as error:
    ...     print(error.reason, error.request_id)
    INTERNAL request-7
    """
