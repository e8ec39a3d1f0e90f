"""Every example in the docstrings of the client is run, against a real gRPC server with canned answers."""

import asyncio
import doctest
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image

import damoserve_client
from damoserve_client import Client, DamoserveError
from tests.support.fake_server import FakeServer, Refusal, refusal

Code = grpc.StatusCode

# The addresses in the examples, and what listens there: the server, and nobody who speaks gRPC.
SERVER, SILENT = "127.0.0.1:50051", "127.0.0.1:50052"

# How the server fails the call in the example of an error; it finds out by itself what is not here.
REFUSALS = {
    "InvalidRequest": refusal(Code.INVALID_ARGUMENT, "ARGUMENT_OUT_OF_RANGE"),
    "ModelNotFound": refusal(Code.NOT_FOUND, "MODEL_NOT_FOUND"),
    "FailedPrecondition": refusal(Code.FAILED_PRECONDITION, "PROFILE_UNAVAILABLE"),
    "ProfileUnavailable": refusal(Code.FAILED_PRECONDITION, "PROFILE_UNAVAILABLE"),
    "AccuracyUnavailable": refusal(Code.FAILED_PRECONDITION, "ACCURACY_UNAVAILABLE"),
    "DeadlineExceeded": refusal(Code.DEADLINE_EXCEEDED, "DEADLINE_UNREACHABLE"),
    "Overloaded": refusal(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_ms=250),
    "LimitExceeded": refusal(Code.RESOURCE_EXHAUSTED, "RATE_LIMITED", retry_ms=250),
    "Unauthenticated": refusal(Code.UNAUTHENTICATED, "TOKEN_MISSING"),
    "PermissionDenied": refusal(Code.PERMISSION_DENIED, "PERMISSION_DENIED"),
    "Unavailable": refusal(Code.UNAVAILABLE, "SHUTTING_DOWN"),
    "Cancelled": Refusal(Code.CANCELLED),
    "ServerFault": refusal(Code.INTERNAL, "INTERNAL"),
}


def documented() -> Iterator[tuple[str, Any]]:
    """The package, its public classes, and their public methods."""
    yield "damoserve_client", damoserve_client
    for name in damoserve_client.__all__:
        public = getattr(damoserve_client, name)
        if inspect.isclass(public):
            yield name, public
            methods = {each: value for each, value in vars(public).items() if inspect.isfunction(value)}
            yield from ((f"{name}.{each}", value) for each, value in methods.items() if not each.startswith("_"))


DOCUMENTED = dict(documented())


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_example_is_right(
    name: str, server: FakeServer, silent_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = inspect.getdoc(DOCUMENTED[name]) or ""
    text = text.replace(SERVER, server.address).replace(SILENT, silent_address)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (200, 150), "#f4ecec").save("smear.jpg")
    if name in REFUSALS:
        server.service.refusals += [REFUSALS[name]] * 4  # as often as the client tries
    public = {each: getattr(damoserve_client, each) for each in damoserve_client.__all__}
    report: list[str] = []
    with Client(server.address) as client:
        names = {**public, "asyncio": asyncio, "client": client}
        test = doctest.DocTestParser().get_doctest(text, names, name, None, None)
        assert test.examples, "there is no example"
        doctest.DocTestRunner().run(test, out=report.append)
    assert not report, "".join(report)


def test_all_that_is_public_is_documented() -> None:
    assert {"Client.detect", "AsyncClient.stream", "DetectionResult.count_by_label", "NoAnswer"} <= DOCUMENTED.keys()
    for name in DOCUMENTED:
        kind = getattr(damoserve_client, name, None)
        for each, value in vars(kind).items() if inspect.isclass(kind) else ():
            if isinstance(value, property):
                assert value.__doc__, f"{name}.{each}"


def test_every_error_is_caught_in_its_own_example() -> None:
    for name, kind in DOCUMENTED.items():
        if inspect.isclass(kind) and issubclass(kind, DamoserveError):
            assert f"except {name} as error:" in (kind.__doc__ or "")
