"""Starting, draining, stopping, cancelling."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import onnxruntime
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import damoserve_profiles.repository
from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_profiles.repository import Repository
from damoserve_server.app import serve as serve_until_stopped
from damoserve_server.configuration.settings import Settings
from damoserve_server.engines.engine import EngineError, EngineOptions
from damoserve_server.engines.onnxruntime import OnnxRuntimeEngine
from damoserve_server.errors import ShuttingDown
from damoserve_server.models.catalogue import CatalogueError
from damoserve_server.models.loading import WARM_UP_RUNS
from tests.support.pictures import Pictures
from tests.support.server import MakeApplication, Serve, connected, listening
from tests.support.valve import Valve

DETECTION = "damoserve.v1.DetectionService"


async def test_not_serving_until_warm_and_calls_wait_for_it(
    application: MakeApplication, pictures: Pictures, valve: Valve
) -> None:
    valve.shut()
    server = application(valve.load)
    async with listening(server) as client:
        loading = asyncio.ensure_future(server.load())
        await valve.entered()
        before = [await client.health(), await client.health(DETECTION)]
        early = asyncio.ensure_future(client.detect(pictures.red))
        await client.until(lambda now: now.sum("grpc_server_started_total", grpc_method="Detect") == 1)
        valve.open()
        await loading
        after = [await client.health(), await client.health(DETECTION)]
        answer = await early
    assert (before, after) == (["NOT_SERVING"] * 2, ["SERVING"] * 2)
    assert len(answer.detections) == 4


async def test_an_early_call_may_give_up(application: MakeApplication, pictures: Pictures, valve: Valve) -> None:
    valve.shut()
    server = application(valve.load)
    async with listening(server) as client:
        loading = asyncio.ensure_future(server.load())
        failure = await client.failure(client.detect(pictures.red, timeout=0.2))
        valve.open()
        await loading
        assert len((await client.detect(pictures.red)).detections) == 4
    assert failure.code == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_an_early_call_waits_no_longer_than_its_budget(
    application: MakeApplication, pictures: Pictures, valve: Valve
) -> None:
    valve.shut()
    server = application(valve.load, default_deadline_seconds=0.2)
    async with listening(server) as client:
        loading = asyncio.ensure_future(server.load())
        failures = [
            await client.failure(client.detect(pictures.red, latency_budget=Duration(nanos=100_000_000))),
            await client.failure(client.detect(pictures.red, timeout=None)),
            await client.failure(client.profiles.ListProfiles(pb.ListProfilesRequest())),
        ]
        assert not loading.done()
        valve.open()
        await loading
        assert len((await client.detect(pictures.red)).detections) == 4
    for failure in failures:
        assert (failure.code, failure.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED")
        assert failure.detail(error_details_pb2.RetryInfo).retry_delay.ToNanoseconds() > 0


async def test_a_server_that_stops_while_it_loads_loads_no_further_profile(
    application: MakeApplication, pictures: Pictures, valve: Valve
) -> None:
    valve.shut()
    server = application(valve.load, max_batch_size=1)
    async with listening(server) as client:
        loading = asyncio.ensure_future(server.load())
        await valve.entered()
        early = asyncio.ensure_future(client.detect(pictures.red))
        await client.until(lambda now: now.sum("grpc_server_started_total", grpc_method="Detect") == 1)
        stopping = asyncio.ensure_future(server.stop())
        failure = await client.failure(early)
        await stopping
        valve.open()
        with pytest.raises(ShuttingDown):
            await loading
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    assert valve.sizes == [1] * WARM_UP_RUNS


async def test_a_signal_ends_the_loading(repository: Path) -> None:
    """The first manifest is a pipe: the server hangs in it until the test closes it."""
    pipe = repository / "colours" / "3" / "a" / "manifest.json"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    announced: list[str] = []
    settings = Settings(repository=repository, port=0, metrics_port=0)
    serving = asyncio.ensure_future(serve_until_stopped(settings, announced.append))
    writer = await asyncio.to_thread(pipe.open, "wb")
    os.kill(os.getpid(), signal.SIGTERM)
    await serving
    pipe.unlink()
    writer.close()
    assert announced == []


async def test_a_stopping_server_answers_what_it_has_accepted(
    application: MakeApplication, pictures: Pictures, valve: Valve
) -> None:
    server = application(valve.load, max_batch_size=1)
    async with server, connected(server) as client:
        valve.shut()
        calls = [asyncio.ensure_future(client.detect(pictures.red)) for _ in range(3)]
        await client.until(lambda now: now.sum("damoserve_queued_requests") == 2)
        stopping = asyncio.ensure_future(server.stop())
        while await client.health() == "SERVING":
            pass
        refused = await client.failure(client.detect(pictures.red))
        assert not stopping.done()
        valve.open()
        answers = await asyncio.gather(*calls)
        await stopping
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    assert [len(answer.detections) for answer in answers] == [4, 4, 4]


async def test_a_stopping_server_takes_requests_until_the_balancers_know(
    application: MakeApplication, pictures: Pictures
) -> None:
    server = application(grace_seconds=1)
    async with server, connected(server) as client:
        stopping = asyncio.ensure_future(server.stop())
        while await client.health() == "SERVING":
            pass
        answer = await client.detect(pictures.red)
        early = stopping.done()
        await stopping
    assert len(answer.detections) == 4
    assert not early


async def test_a_fault_is_told_until_it_is_over(
    application: MakeApplication, pictures: Pictures, caplog: pytest.LogCaptureFixture
) -> None:
    server = application()
    states = []
    async with server, connected(server) as client:
        for tell in (server.health.degraded("worker 1 hangs"), server.health.recovered()):
            await tell
            states.append([await client.health(), await client.health(DETECTION)])
        assert len((await client.detect(pictures.red)).detections) == 4
    assert states == [["NOT_SERVING"] * 2, ["SERVING"] * 2]
    assert "NOT_SERVING: worker 1 hangs" in caplog.text


async def test_a_fault_that_is_over_does_not_make_a_loading_server_serve(application: MakeApplication) -> None:
    server = application()
    async with listening(server) as client:
        await server.health.degraded("worker 1 hangs")
        await server.health.recovered()
        while_loading = await client.health()
        await server.health.degraded("worker 1 hangs")
        await server.load()
        loaded = await client.health()
    assert (while_loading, loaded) == ("NOT_SERVING", "NOT_SERVING")


async def test_draining_takes_no_longer_than_it_may(
    application: MakeApplication, pictures: Pictures, valve: Valve
) -> None:
    server = application(valve.load, max_batch_size=1, drain_seconds=0)
    async with server, connected(server) as client:
        valve.shut()
        calls = [asyncio.ensure_future(client.detect(pictures.red)) for _ in range(2)]
        await client.until(lambda now: now.sum("damoserve_queued_requests") == 1)
        stopping = asyncio.ensure_future(server.stop())
        failures = [await client.failure(call) for call in calls]
        valve.open()
        await stopping
    assert {failure.code for failure in failures} == {grpc.StatusCode.UNAVAILABLE}
    assert {failure.reason for failure in failures} == {None, "SHUTTING_DOWN"}  # the first is cut off while it computes
    assert valve.sizes == [1]


async def test_a_cancelled_call_is_not_computed(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    async with serve(valve.load, max_batch_size=1) as client:
        valve.shut()
        running, waiting = [asyncio.ensure_future(client.detect(pictures.red)) for _ in range(2)]
        await client.until(lambda now: now.sum("damoserve_queued_requests") == 1)
        waiting, running = (waiting, running) if valve.sizes == [1] else (running, waiting)
        leased = (await client.metrics()).sum("damoserve_pool_slots", state="leased")
        waiting.cancel()
        running.cancel()
        await client.until(lambda now: now.sum("damoserve_queued_requests") == 0)
        held = (await client.metrics()).sum("damoserve_pool_slots", state="leased")
        valve.open()
        await client.until(lambda now: now.sum("damoserve_pool_slots", state="leased") == 0)
        await client.until(lambda now: now.sum("grpc_server_handled_total", grpc_code="CANCELLED") == 2)
        assert len((await client.detect(pictures.red)).detections) == 4
    assert (leased, held) == (2, 1)
    assert valve.sizes == [1, 1]


async def test_one_damaged_profile_fails_alone(serve: Serve, repository: Path, pictures: Pictures) -> None:
    model = repository / "colours" / "3" / "accurate" / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    async with serve() as client:
        failed = await client.profiles.GetProfile(pb.GetProfileRequest(profile="accurate"))
        states = (await client.metrics()).sum("damoserve_profile_state", profile="accurate", state="failed")
        failure = await client.failure(client.detect(pictures.red, profile="accurate"))
        state, answer = states, await client.detect(pictures.red)
    assert failed.state == pb.Profile.STATE_FAILED
    assert failed.error == (
        "a file of colours/3/accurate is not what its manifest promises (SHA-256); build or copy the profile again"
    )
    assert failed.average_precision == 0.6
    assert not failed.HasField("expected_latency")
    assert state == 1
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PROFILE_UNAVAILABLE")
    assert answer.profile == "quick"


async def test_profiles_that_the_runtime_cannot_use_fail_alone(
    serve: Serve,
    repository: Path,
    new_profile: Callable[..., None],
    pictures: Pictures,
    caplog: pytest.LogCaptureFixture,
) -> None:
    new_profile(repository, "garbage", ap=0.9, model=b"no model")
    (repository / "colours" / "3" / "empty").mkdir()
    other = repository / "colours" / "3" / "other"
    new_profile(repository, "other", ap=0.9)
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"candidates": 4', '"candidates": 5'))
    async with serve() as client:
        listed = (await client.profiles.ListProfiles(pb.ListProfilesRequest(model="colours"))).profiles
        errors, answer = {profile.profile: profile.error for profile in listed}, await client.detect(pictures.red)
    assert list(errors) == ["accurate", "quick", "empty", "garbage", "other"]
    cannot = "the runtime of the server cannot use colours/3/{}/model.onnx; see the server's log"
    assert errors["garbage"] == cannot.format("garbage")
    assert errors["other"] == cannot.format("other")
    assert errors["empty"] == "colours/3/empty/manifest.json is not a valid manifest; build the profile again"
    for detail in ("ONNX Runtime refused the model", "its manifest promises", str(repository)):
        assert detail in caplog.text
    assert answer.profile == "accurate"


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_cannot_start_is_not_replaced_in_silence(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = ("ROCMExecutionProvider", "CPUExecutionProvider")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(both))
    folder = Repository(pristine).folder("colours", 3, "quick")
    with pytest.raises(EngineError, match="could not start ROCMExecutionProvider and would use CPUExecutionProvider"):
        OnnxRuntimeEngine(folder.model_path.read_bytes(), folder.read_manifest(), EngineOptions(1, providers=both))


async def test_the_newest_version_serves_and_the_default_model_can_be_set(
    serve: Serve, repository: Path, new_profile: Callable[..., None], pictures: Pictures
) -> None:
    new_profile(repository, "only", ap=0.1, name="birds")
    (repository / "colours" / "3").rename(repository / "colours" / "2")
    new_profile(repository, "only", ap=0.1)
    async with serve(default_model="colours") as client:
        answer = await client.detect(pictures.red)
        other = await client.detect(pictures.red, model="birds")
        result = (answer.model, answer.model_version, answer.profile), other.model
    assert result == (("colours", 3, "only"), "birds")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"default_model": "birds"}, "'birds' is not in"),
        ({"providers": ["AbacusExecutionProvider"]}, "has no AbacusExecutionProvider"),
    ],
)
def test_with_nothing_to_serve_it_does_not_start(
    application: MakeApplication, settings: dict[str, Any], message: str
) -> None:
    async def scenario() -> None:
        async with application(**settings):
            pass

    with pytest.raises(CatalogueError, match=message):
        asyncio.run(scenario())


async def test_where_the_bundled_models_are_not_installed_it_says_what_to_install(
    application: MakeApplication, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(damoserve_profiles.repository, "BUNDLED", tmp_path / "missing")
    with pytest.raises(CatalogueError, match="pip install damoserve-models"):
        async with application(repository=tmp_path / "missing"):
            pass


async def test_the_services_can_be_listed(serve: Serve) -> None:
    async with serve() as client:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stream = reflection_pb2_grpc.ServerReflectionStub(client.channel).ServerReflectionInfo(iter([request]))
        result = {service.name async for answer in stream for service in answer.list_services_response.service}
    assert result >= {DETECTION, "damoserve.v1.ProfileService", "grpc.health.v1.Health"}


async def test_a_taken_port_is_an_error(serve: Serve, application: MakeApplication) -> None:
    async with serve() as client:
        with pytest.raises(OSError, match="cannot listen on"):
            async with application(port=client.application.port):
                pass


def test_the_command_serves_until_a_signal(repository: Path, pictures: Pictures) -> None:
    arguments = ["--repository", str(repository), "--port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "damoserve_server", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        at = r"127\.0\.0\.1:\d+"
        served = re.fullmatch(rf"serving colours \(accurate, quick\) on ({at}), metrics on http://{at}/metrics\n", line)
        assert served, line
        with grpc.insecure_channel(served[1]) as channel:
            request = pb.DetectRequest(image=pb.Image(content=pictures.red))
            assert len(pb_grpc.DetectionServiceStub(channel).Detect(request, timeout=20).detections) == 4
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_the_command_says_why_it_cannot_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "damoserve_server", "--repository", str(tmp_path / "nowhere"), "--port", "0"]
    result = subprocess.run([*command, "--metrics-port", "0"], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"damoserve cannot start: the repository {tmp_path}/nowhere does not exist: ")
    assert result.stderr.count("\n") == 1


BLOCKED = """
import importlib.util, pkgutil, sys
for name in ("torch", "onnx", "damoserve_compress", "damoserve_client"):
    sys.modules[name] = None
GPU = ["cuda", "tensorrt"]
import damoserve_server
for module in pkgutil.walk_packages(damoserve_server.__path__, "damoserve_server."):
    engine = module.name.removeprefix("damoserve_server.engines.")
    needed = {"cuda": ["cuda"], "openvino": ["openvino"], "tensorrt": GPU, "tensorrt_plan": GPU}.get(engine, [])
    if all(map(importlib.util.find_spec, needed)):
        importlib.import_module(module.name)
"""


def test_the_server_needs_neither_torch_nor_onnx_nor_the_other_packages() -> None:
    subprocess.run([sys.executable, "-c", BLOCKED], check=True, timeout=60)
