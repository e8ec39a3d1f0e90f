"""The log of a server, as it is written to standard error."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_server.detection.request import Timings
from damoserve_server.telemetry.logs import make_handler
from damoserve_server.telemetry.settings import LogFormat
from tests.support.pictures import Pictures
from tests.support.server import Serve, ServerClient
from tests.support.timeouts import TIMEOUT
from tests.support.valve import Valve

STAGES = [stage.name for stage in fields(Timings)]
TOKEN = "a-token-that-nobody-is-to-read-in-a-log"
DETECT = "damoserve.v1.DetectionService/Detect"

Line = dict[str, Any]
LoggingAs = Callable[[LogFormat], None]
Lines = Callable[[], list[Line]]
Command = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def logging_as(caplog: pytest.LogCaptureFixture) -> Iterator[LoggingAs]:
    """Adds our handler to those of the tests."""
    added: list[logging.Handler] = []

    def configured(format: LogFormat) -> None:
        caplog.set_level(logging.DEBUG)
        added.append(make_handler(format))
        logging.getLogger().addHandler(added[-1])

    yield configured
    for handler in added:
        logging.getLogger().removeHandler(handler)


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    """The lines since the last look, as objects."""
    return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]


async def detect(client: ServerClient, image: bytes, *metadata: tuple[str, str], **fields: Any) -> pb.DetectResponse:
    request = pb.DetectRequest(image=pb.Image(content=image), **fields)
    return await pb_grpc.DetectionServiceStub(client.channel).Detect(request, timeout=TIMEOUT, metadata=metadata)


def accesses(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line["logger"] == "damoserve_server.access_log"]


async def test_the_access_log_has_one_line_a_call(
    serve: Serve, pictures: Pictures, logging_as: LoggingAs, lines: Lines
) -> None:
    logging_as(LogFormat.JSON)
    async with serve(access_log=True, tiers={"balanced": {"objective_ms": 5000}}) as client:
        await detect(client, pictures.red, ("x-request-id", "first"))
        await detect(client, pictures.red, ("x-request-id", "second"), profile="quick")
        await client.failure(detect(client, b"no image", ("x-request-id", "third")))
        await client.health()
    first, second, third = accesses(lines())
    assert list(first["stage_seconds"]) == STAGES
    assert 0 < sum(first["stage_seconds"].values()) <= first["seconds"]
    expected = {
        "level": "info",
        "message": "call",
        "request_id": "first",
        "method": DETECT,
        "code": "OK",
        "tier": "balanced",
        "model": "colours",
        "model_version": 3,
        "profile": "accurate",
        "selection_reason": "most_accurate_in_time",
        "batch_size": 1,
    }
    assert expected.items() <= first.items()
    assert (second["request_id"], second["profile"], second["selection_reason"]) == ("second", "quick", "requested")
    assert "tier" not in second
    assert "trace_id" not in second
    refused = {"request_id": "third", "code": "INVALID_ARGUMENT", "reason": "IMAGE_UNDECODABLE", "tier": "balanced"}
    assert refused.items() <= third.items()
    assert "stage_seconds" not in third


async def test_the_access_log_has_a_line_for_each_frame_and_one_for_the_stream(
    serve: Serve, pictures: Pictures, logging_as: LoggingAs, lines: Lines
) -> None:
    logging_as(LogFormat.JSON)
    async with serve(access_log=True) as client:
        call = pb_grpc.DetectionServiceStub(client.channel).DetectStream(timeout=TIMEOUT)
        await call.write(pb.DetectStreamRequest(options=pb.StreamOptions(profile="quick")))
        for identifier in (7, 8):
            frame = pb.Frame(id=identifier, image=pb.Image(content=pictures.red))
            await call.write(pb.DetectStreamRequest(frame=frame))
        await call.done_writing()
        assert [answer.frame_id async for answer in call] == [7, 8]
    told = accesses(lines())
    assert sorted((line["message"], line.get("frame_id")) for line in told[:2]) == [("frame", "7"), ("frame", "8")]
    assert told[2]["message"] == "call"
    assert len({line["request_id"] for line in told}) == 1


async def test_it_is_off_by_default(serve: Serve, pictures: Pictures, logging_as: LoggingAs, lines: Lines) -> None:
    logging_as(LogFormat.JSON)
    async with serve() as client:
        await client.detect(pictures.red)
    assert accesses(lines()) == []


async def test_an_internal_error_is_logged_with_its_request_and_traceback(
    serve: Serve, pictures: Pictures, valve: Valve, logging_as: LoggingAs, lines: Lines
) -> None:
    logging_as(LogFormat.JSON)
    async with serve(valve.load, access_log=True) as client:
        valve.fault = RuntimeError("the engine broke")
        failure = await client.failure(detect(client, pictures.red, ("x-request-id", "mine")))
        assert failure.code is grpc.StatusCode.INTERNAL
    error, access = [line for line in lines() if line.get("request_id") == "mine"]
    assert error["level"] == "error"
    assert error["traceback"].startswith("Traceback (most recent call last):\n")
    assert error["traceback"].endswith("RuntimeError: the engine broke")
    assert (access["code"], access["reason"]) == ("INTERNAL", "INTERNAL")


async def test_lines_of_a_refused_call_carry_its_request_and_no_secret(
    serve: Serve, pictures: Pictures, logging_as: LoggingAs, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(yaml.safe_dump({"tokens": [{"name": "someone", "token": TOKEN, "rights": ["detect"]}]}))
    logging_as(LogFormat.JSON)
    async with serve(access_log=True, access={"tokens": tokens}) as client:
        await detect(client, pictures.red, ("authorization", f"Bearer {TOKEN}"))
        wrong = ("authorization", f"Bearer {TOKEN}x"), ("x-request-id", "wrong")
        failure = await client.failure(detect(client, pictures.red, *wrong))
        assert failure.reason == "TOKEN_INVALID"
    written = capsys.readouterr().err
    told = [json.loads(line) for line in written.splitlines()]
    refused = [line["logger"] for line in told if line.get("request_id") == "wrong"]
    assert refused == ["damoserve_server.rpc.authorisation", "damoserve_server.access_log"]
    assert TOKEN not in written
    assert "PNG" not in written


async def test_text_is_for_people_and_quotes_what_callers_choose(
    serve: Serve, pictures: Pictures, logging_as: LoggingAs, capsys: pytest.CaptureFixture[str]
) -> None:
    logging_as(LogFormat.TEXT)
    async with serve(access_log=True) as client:
        await detect(client, pictures.red, ("x-request-id", 'mine" code="INTERNAL'), profile="quick")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "access_log" in line]
    assert " INFO damoserve_server.access_log: call method=" in line
    assert r'request_id="mine\" code=\"INTERNAL"' in line
    assert ' code="OK" ' in line
    assert " batch_size=1 " in line


@pytest.fixture
def command(repository: Path) -> Iterator[Command]:
    """Starts `damoserve serve` with these settings; a profile of its repository is damaged, so that it has to warn."""
    (repository / "colours/3/quick/model.onnx").write_bytes(b"")
    processes: list[subprocess.Popen[str]] = []

    def start(**settings: Any) -> subprocess.Popen[str]:
        own: dict[str, Any] = {"repository": repository, "port": 0, "metrics_port": 0, "workers": 1} | settings
        environment = os.environ | {f"DAMOSERVE_{name.upper()}": str(value) for name, value in own.items()}
        arguments = [sys.executable, "-m", "damoserve_server"]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(arguments, env=environment, stdout=pipe, stderr=pipe, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_the_whole_log_of_the_command_is_json(command: Command) -> None:
    process = command(log_format="json")
    assert process.stderr is not None
    while "serving" not in (line := process.stderr.readline()):
        assert line, "the command has ended"
        assert {"time", "level", "logger", "message"} <= json.loads(line).keys()
    assert json.loads(line)["message"].startswith("serving colours (accurate) on ")
    process.send_signal(signal.SIGTERM)
    written, log = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, written) == (0, "")
    assert all(json.loads(line) for line in log.splitlines())


def test_the_log_of_the_command_has_a_level(command: Command) -> None:
    process = command(log_level="error")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("serving colours (accurate) on ")
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    assert " WARNING " not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_log_of_the_command_tells_why_it_stops_and_how_that_went(command: Command, number: signal.Signals) -> None:
    process = command(log_format="json")
    assert process.stderr is not None
    while "serving" not in (line := process.stderr.readline()):
        assert line, "the command has ended"
    process.send_signal(number)
    _, log = process.communicate(timeout=TIMEOUT)
    first, last = [line for line in map(json.loads, log.splitlines()) if line["message"].startswith("stop")]
    assert {"message": "stopping", "signal": number.name, "requests_inside": 0}.items() <= first.items()
    assert {"message": "stopped", "answered": 0, "refused": 0, "abandoned": 0, "failed": 0}.items() <= last.items()
    assert last["seconds"] > 0
