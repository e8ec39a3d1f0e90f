import pickle

import grpc
import pytest
from google.rpc import error_details_pb2

import damoserve_client
from damoserve_client import Client, DamoserveError, Overloaded, errors, status
from tests.support.fake_server import REQUEST_ID, FakeServer, Refusal, refusal

Code = grpc.StatusCode

REASONS = [
    (Code.INVALID_ARGUMENT, "IMAGE_EMPTY", errors.InvalidImage),
    (Code.INVALID_ARGUMENT, "IMAGE_UNDECODABLE", errors.InvalidImage),
    (Code.INVALID_ARGUMENT, "IMAGE_TOO_LARGE", errors.InvalidImage),
    (Code.INVALID_ARGUMENT, "ARGUMENT_OUT_OF_RANGE", errors.InvalidRequest),
    (Code.INVALID_ARGUMENT, "PROFILE_AND_TIER", errors.InvalidRequest),
    (Code.NOT_FOUND, "MODEL_NOT_FOUND", errors.ModelNotFound),
    (Code.NOT_FOUND, "PROFILE_NOT_FOUND", errors.ProfileNotFound),
    (Code.FAILED_PRECONDITION, "PROFILE_UNAVAILABLE", errors.ProfileUnavailable),
    (Code.FAILED_PRECONDITION, "ACCURACY_UNAVAILABLE", errors.AccuracyUnavailable),
    (Code.DEADLINE_EXCEEDED, "DEADLINE_UNREACHABLE", errors.DeadlineExceeded),
    (Code.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED", errors.DeadlineExceeded),
    (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", errors.Overloaded),
    (Code.UNAUTHENTICATED, "TOKEN_MISSING", errors.Unauthenticated),
    (Code.UNAUTHENTICATED, "TOKEN_INVALID", errors.Unauthenticated),
    (Code.PERMISSION_DENIED, "PERMISSION_DENIED", errors.PermissionDenied),
    (Code.RESOURCE_EXHAUSTED, "RATE_LIMITED", errors.LimitExceeded),
    (Code.RESOURCE_EXHAUSTED, "CONCURRENCY_LIMITED", errors.LimitExceeded),
    (Code.UNAVAILABLE, "SHUTTING_DOWN", errors.Unavailable),
    (Code.INTERNAL, "INTERNAL", errors.ServerFault),
    (Code.UNIMPLEMENTED, "", errors.ServerFault),
    (Code.NOT_FOUND, "A_NEW_REASON", errors.NotFound),
]


def raised_by(server: FakeServer, *refusals: Refusal) -> DamoserveError:
    server.service.refusals += refusals
    with Client(server.address) as client, pytest.raises(DamoserveError) as raised:
        client.profiles()
    return raised.value


@pytest.mark.parametrize(("code", "reason", "kind"), REASONS)
def test_the_reason_decides_the_type(server: FakeServer, code: Code, reason: str, kind: type[DamoserveError]) -> None:
    error = raised_by(server, *[refusal(code, reason)] * 4)
    assert type(error) is kind
    assert (error.code, error.reason, error.message) == (code, reason, "no")
    assert error.metadata == {"profile": "int9"}
    assert error.request_id == REQUEST_ID


def test_an_overload_says_when_to_try_again(server: FakeServer) -> None:
    error = raised_by(server, refusal(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_ms=250))
    assert isinstance(error, Overloaded)
    assert error.retry_after == 0.25
    without = raised_by(server, Refusal(Code.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!"))
    assert isinstance(without, Overloaded)
    assert without.retry_after is None


def test_the_reason_of_another_domain_is_not_ours(server: FakeServer) -> None:
    error = raised_by(server, refusal(Code.NOT_FOUND, "MODEL_NOT_FOUND", domain="proxy.example"))
    assert (type(error), error.reason, error.metadata) == (errors.NotFound, "", {})


def test_other_details_are_passed_over(server: FakeServer) -> None:
    error = raised_by(server, Refusal(Code.INTERNAL, details=(error_details_pb2.DebugInfo(detail="x"),)))
    assert (type(error), error.reason) == (errors.ServerFault, "")


def test_an_error_survives_pickling(server: FakeServer) -> None:
    error = raised_by(server, refusal(Code.NOT_FOUND, "MODEL_NOT_FOUND"))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.failure, str(again)) == (type(error), error.failure, str(error))
    assert str(error) == "no [NOT_FOUND, MODEL_NOT_FOUND]"


class TestBrokenDetails:
    """What a proxy may put into the trailing metadata."""

    class Call(grpc.RpcError):
        def __init__(self, details: bytes) -> None:
            self._details = details

        def code(self) -> Code:
            return Code.NOT_FOUND

        def details(self) -> str:
            return "gone"

        # The stubs have objects with a key and a value; real calls have pairs.
        def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:  # type: ignore[override]
            return (("grpc-status-details-bin", self._details),)

    @pytest.mark.parametrize("details", [b"\xff\xff", b"\x08\x03\x12\x04gone", b"\x08\x05\x12\x01x"])
    def test_the_code_still_decides(self, details: bytes) -> None:
        error = status.from_rpc_error(self.Call(details), status.Attempt("127.0.0.1:1", None, lambda: True))
        assert (type(error), error.message, error.reason) == (errors.NotFound, "gone", "")


def test_the_tree_in_the_docstring_is_complete() -> None:
    def descendants(kind: type[DamoserveError]) -> set[str]:
        return {kind.__name__}.union(*map(descendants, kind.__subclasses__()))

    for name in descendants(DamoserveError):
        assert name in (errors.__doc__ or "")
        assert name in damoserve_client.__all__
