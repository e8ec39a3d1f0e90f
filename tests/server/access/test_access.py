"""Callers with and without tokens at a real server."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pydantic import ValidationError

from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_server.access.tokens import Right, digest_of
from damoserve_server.configuration.settings import Settings
from damoserve_server.rpc.authorisation import right_for
from tests.support.authority import replace
from tests.support.pictures import Pictures
from tests.support.server import Serve
from tests.support.timeouts import TIMEOUT
from tests.support.valve import Valve

CAMERA, OPERATOR, OTHER = ("camera" * 6, "operator" * 5, "other" * 8)
SECRETS = (CAMERA, OPERATOR, OTHER, digest_of(CAMERA).hex())

Code = grpc.StatusCode
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the file of tokens: the camera's with these limits, and an administrator's."""

    def write(camera: str = CAMERA, **limits: Any) -> Path:
        entries = [
            {"name": "camera", "sha256": digest_of(camera).hex(), **limits},
            {"name": "operator", "token": OPERATOR, "rights": ["admin"]},
        ]
        return replace(tmp_path / "tokens.yaml", yaml.safe_dump({"tokens": entries}).encode())

    return write


def bearer(token: str, scheme: str = "Bearer") -> tuple[tuple[str, str], ...]:
    return (("authorization", f"{scheme} {token}"),)


def detect(client: Any, image: bytes, token: str | None = CAMERA, scheme: str = "Bearer") -> Any:
    request = pb.DetectRequest(image=pb.Image(content=image))
    metadata = None if token is None else bearer(token, scheme)
    return pb_grpc.DetectionServiceStub(client.channel).Detect(request, timeout=TIMEOUT, metadata=metadata)


def reflect(client: Any, questions: int, token: str | None) -> Any:
    """A call with a stream of messages; its answers."""
    stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
    messages = [reflection_pb2.ServerReflectionRequest(list_services="")] * questions
    metadata = None if token is None else bearer(token)

    async def answers() -> list[Any]:
        return [each async for each in stub.ServerReflectionInfo(iter(messages), timeout=TIMEOUT, metadata=metadata)]

    return answers()


def watch(client: Any, token: str | None) -> Any:
    call = health_pb2_grpc.HealthStub(client.channel).Watch(
        health_pb2.HealthCheckRequest(), timeout=TIMEOUT, metadata=None if token is None else bearer(token)
    )
    return call.read()


async def test_each_caller_without_leave_is_refused_counted_and_logged(
    serve: Serve, pictures: Pictures, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    cases = [
        (None, "Bearer", Code.UNAUTHENTICATED, "TOKEN_MISSING"),
        (CAMERA, "Basic", Code.UNAUTHENTICATED, "TOKEN_MISSING"),
        ("", "Bearer", Code.UNAUTHENTICATED, "TOKEN_MISSING"),
        (OTHER, "Bearer", Code.UNAUTHENTICATED, "TOKEN_INVALID"),
        (CAMERA[:-1], "Bearer", Code.UNAUTHENTICATED, "TOKEN_INVALID"),
        (digest_of(CAMERA).hex(), "Bearer", Code.UNAUTHENTICATED, "TOKEN_INVALID"),
        (OPERATOR, "Bearer", Code.PERMISSION_DENIED, "PERMISSION_DENIED"),
    ]
    async with serve(access={"tokens": write()}) as client:
        for token, scheme, code, reason in cases:
            before = (await client.metrics()).sum("damoserve_refused_total", reason=reason)
            failure = await client.failure(detect(client, pictures.red, token, scheme))
            assert (failure.code, failure.reason) == (code, reason)
            assert not any(secret in str(failure) for secret in SECRETS)
            assert (await client.metrics()).sum("damoserve_refused_total", reason=reason) == before + 1
        assert len((await detect(client, pictures.red)).detections) == 4
        assert len((await detect(client, pictures.red, scheme="bearer")).detections) == 4
        result = (await client.metrics()).sum("grpc_server_handled_total", grpc_method="Detect")
    with caplog.at_level(logging.DEBUG):
        assert result == len(cases) + 2
    lines = [line for line in caplog.messages if line.startswith("refused /damoserve.v1.DetectionService/Detect from ")]
    assert [line.split(" with ")[1].split(":")[0] for line in lines] == [reason for *_, reason in cases]
    assert not any(secret in caplog.text for secret in SECRETS)


async def test_a_flood_of_refusals_is_counted_whole_and_logged_in_part(
    serve: Serve, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(access={"tokens": write()}) as client:
        calls = [client.profiles.ListProfiles(pb.ListProfilesRequest()) for _ in range(250)]
        await asyncio.gather(*map(client.failure, calls))
        result = (await client.metrics()).sum("damoserve_refused_total", reason="TOKEN_MISSING")
    with caplog.at_level(logging.WARNING):
        assert result == 250
    assert 100 <= sum("TOKEN_MISSING" in line for line in caplog.messages) < 250


async def test_a_token_above_its_rate_is_told_when_to_come_back(serve: Serve, pictures: Pictures, write: Write) -> None:
    async with serve(access={"tokens": write(rate=0.01, burst=2)}) as client:
        for _ in range(2):
            await detect(client, pictures.red)
        failure = await client.failure(detect(client, pictures.red))
        counted = (await client.metrics()).sum("damoserve_refused_total", reason="RATE_LIMITED")
    assert (failure.code, failure.reason, counted) == (Code.RESOURCE_EXHAUSTED, "RATE_LIMITED", 1)
    assert 0 < failure.detail(error_details_pb2.RetryInfo).retry_delay.ToNanoseconds() <= 100e9
    assert failure.detail(error_details_pb2.ErrorInfo).metadata["token"] == "camera"


async def test_a_token_with_all_its_calls_open_gets_no_other_until_one_has_ended(
    serve: Serve, pictures: Pictures, write: Write, valve: Valve
) -> None:
    async with serve(valve.load, access={"tokens": write(concurrency=2)}) as client:
        valve.shut()
        held = [asyncio.ensure_future(detect(client, pictures.red)) for _ in range(2)]
        await client.until(lambda now: now.sum("grpc_server_started_total") == 2 + now.sum("grpc_server_handled_total"))
        failure = await client.failure(detect(client, pictures.red))
        held[0].cancel()
        valve.open()
        assert len((await held[1]).detections) == 4
        await client.until(lambda now: now.sum("grpc_server_started_total") == now.sum("grpc_server_handled_total"))
        again = await asyncio.gather(*(detect(client, pictures.red) for _ in range(2)))
        answered = len(again)
    assert (failure.code, failure.reason) == (Code.RESOURCE_EXHAUSTED, "CONCURRENCY_LIMITED")
    assert answered == 2


async def test_health_can_be_checked_but_not_watched_without_a_token(
    serve: Serve, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(access={"tokens": write()}) as client:
        assert await client.health() == "SERVING"
        assert (await watch(client, CAMERA)).status == health_pb2.HealthCheckResponse.SERVING
        await client.failure(watch(client, None))
    async with serve(access={"tokens": write(), "open_health": False}) as client:
        result = await client.failure(client.health())
    assert result.reason == "TOKEN_MISSING"
    assert "refused /grpc.health.v1.Health/Watch" in caplog.text


async def test_streams_need_a_token_too_and_are_slowed_to_its_rate(
    serve: Serve, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(access={"tokens": write(rate=100, burst=2)}) as client:
        await client.failure(reflect(client, 1, None))
        await client.failure(reflect(client, 1, OPERATOR))
        answers = await reflect(client, 5, CAMERA)
    assert len(answers) == 5
    assert "damoserve.v1.DetectionService" in str(answers[-1])
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    reasons = [line.split(" with ")[1].split(":")[0] for line in caplog.messages if line.startswith(f"refused {path}")]
    assert reasons == ["TOKEN_MISSING", "PERMISSION_DENIED"]


async def test_without_a_file_of_tokens_everyone_may_call(serve: Serve, pictures: Pictures) -> None:
    async with serve() as client:
        result = await detect(client, pictures.red, None), await detect(client, pictures.red, OTHER)
    assert all(len(answer.detections) == 4 for answer in result)


async def test_the_next_call_sees_another_file_and_a_broken_one_changes_nothing(
    serve: Serve, pictures: Pictures, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(access={"tokens": write()}) as client:
        path = write(camera=OTHER)
        assert (await client.failure(detect(client, pictures.red))).reason == "TOKEN_INVALID"
        assert len((await detect(client, pictures.red, OTHER)).detections) == 4
        for broken in (f"tokens: [{{name: camera, token: {CAMERA}", f"tokens: [{{name: camera, tokn: {CAMERA}}}]"):
            replace(path, broken.encode())
            assert len((await detect(client, pictures.red, OTHER)).detections) == 4
        path.unlink()
        assert len((await detect(client, pictures.red, OTHER)).detections) == 4
        metrics = await client.metrics()
        result = [
            metrics.sum("damoserve_credential_reloads_total", file="tokens", result=x) for x in ("taken", "refused")
        ]
    with caplog.at_level(logging.INFO):
        assert result == [1, 3]
    assert "is not YAML (line 1)" in caplog.text
    assert "tokens.0.tokn: Extra inputs are not permitted" in caplog.text
    assert "cannot be read: No such file" in caplog.text
    assert not any(secret in caplog.text for secret in SECRETS)


async def test_limits_that_stay_the_same_go_on_over_a_change_of_the_file(
    serve: Serve, pictures: Pictures, write: Write
) -> None:
    async with serve(access={"tokens": write(rate=0.01)}) as client:
        await detect(client, pictures.red)
        write(camera=OTHER, rate=0.01)
        same = await client.failure(detect(client, pictures.red, OTHER))
        write(camera=OTHER, rate=0.02)
        answer = await detect(client, pictures.red, OTHER)
    assert same.reason == "RATE_LIMITED"
    assert len(answer.detections) == 4


@pytest.mark.parametrize(
    ("method", "right"),
    [
        ("/damoserve.v1.DetectionService/Detect", Right.DETECT),
        ("/damoserve.v1.ProfileService/ListProfiles", Right.DETECT),
        ("/inference.GRPCInferenceService/ModelInfer", Right.DETECT),
        ("/inference.GRPCInferenceService/RepositoryIndex", Right.DETECT),
        ("/inference.GRPCInferenceService/RepositoryModelLoad", Right.ADMIN),
        ("/inference.GRPCInferenceService/RepositoryModelUnload", Right.ADMIN),
        ("/damoserve.v1.AdminService/ReloadModel", Right.ADMIN),
        ("/some.new.Service/Method", Right.ADMIN),
    ],
)
def test_what_changes_the_server_or_is_unknown_is_for_administrators(method: str, right: Right) -> None:
    assert right_for(method) is right


LONG = "s3cret" * 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tokens: []", "list of tokens is empty"),
        ("- 1", "valid dictionary"),
        (f"tokens: [{{name: a, token: {LONG[:31]}}}]", "tokens.0: .*at least 32 characters"),
        (f"tokens: [{{name: a, token: {LONG}, sha256: {'a' * 64}}}]", "needs either token or sha256"),
        ("tokens: [{name: a}]", "needs either token or sha256"),
        (f"tokens: [{{name: a, sha256: {LONG}}}]", r"tokens\.0\.sha256: String should match"),
        (f"tokens: [{{name: a b, token: {LONG}}}]", r"tokens\.0\.name: String should match"),
        (f"tokens: [{{name: a, token: {LONG}, rights: [all]}}]", "'detect' or 'admin'"),
        (f"tokens: [{{name: a, token: {LONG}, rights: []}}]", "rights: .*at least 1 item"),
        (f"tokens: [{{name: a, token: {LONG}, rate: 0}}]", "greater than 0"),
        (f"tokens: [{{name: a, token: {LONG}, burst: 5}}]", "burst needs a rate"),
        (f"tokens: [{{name: a, token: {LONG}}}, {{name: a, token: {LONG}2}}]", "two tokens have the name a"),
        (f"tokens: [{{name: a, token: {LONG}}}, {{name: b, token: {LONG}}}]", "a and b have the same token"),
        (f"{LONG}: {{name: a}}", "Extra inputs are not permitted"),
        (f"tokens: [{{name: a, {LONG}: detect}}]", r"tokens\.0\.\(a long name\): Extra inputs are not permitted"),
        ("tokens: [{name: a, rigths: [detect]}]", r"tokens\.0\.rigths: Extra inputs are not permitted"),
        (f"tokens: [{{name: a, token: {LONG}", r"is not YAML \(line 1\)"),
        (f"tokens: [{{name: a, token: {LONG}\0}}]", "is not YAML"),
        (None, "cannot be read: No such file"),
    ],
)
def test_mistakes_in_the_file_of_tokens_are_named_without_the_token(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "tokens.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValidationError, match=message) as raised:
        Settings(access={"tokens": path})
    assert "s3cret" not in str(raised.value)
