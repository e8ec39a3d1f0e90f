"""Starting, draining, stopping, cancelling."""

import asyncio
import re
import signal
import subprocess
import sys

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_server.catalogue import CatalogueError

DETECTION = "damoserve.v1.DetectionService"


def test_not_serving_until_warm_and_calls_wait_for_it(application, client_of, pictures, valve):
    async def scenario():
        valve.shut()
        server = application(valve.load)
        await server.listen()
        async with client_of(server) as client:
            loading = asyncio.ensure_future(server.load())
            await valve.entered()
            before = [await client.health(), await client.health(DETECTION)]
            early = asyncio.ensure_future(client.detect(pictures.red))
            await client.until(lambda now: now.sum("grpc_server_started_total", grpc_method="Detect") == 1)
            valve.open()
            await loading
            after = [await client.health(), await client.health(DETECTION)]
            answer = await early
        await server.stop()
        return before, after, answer

    before, after, answer = asyncio.run(scenario())
    assert (before, after) == (["NOT_SERVING"] * 2, ["SERVING"] * 2)
    assert len(answer.detections) == 4


def test_an_early_call_may_give_up(application, client_of, pictures, valve):
    async def scenario():
        valve.shut()
        server = application(valve.load)
        await server.listen()
        async with client_of(server) as client:
            loading = asyncio.ensure_future(server.load())
            failure = await client.failure(client.detect(pictures.red, timeout=0.2))
            valve.open()
            await loading
            assert len((await client.detect(pictures.red)).detections) == 4
        await server.stop()
        return failure

    assert asyncio.run(scenario()).code == grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_stopping_server_answers_what_it_has_accepted(application, client_of, pictures, valve):
    async def scenario():
        server = application(valve.load, max_batch_size=1)
        async with server, client_of(server) as client:
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
        return refused, answers

    refused, answers = asyncio.run(scenario())
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    assert [len(answer.detections) for answer in answers] == [4, 4, 4]


def test_draining_takes_no_longer_than_it_may(application, client_of, pictures, valve):
    async def scenario():
        server = application(valve.load, max_batch_size=1, drain_seconds=0)
        async with server, client_of(server) as client:
            valve.shut()
            calls = [asyncio.ensure_future(client.detect(pictures.red)) for _ in range(2)]
            await client.until(lambda now: now.sum("damoserve_queued_requests") == 1)
            stopping = asyncio.ensure_future(server.stop())
            failures = [await client.failure(call) for call in calls]
            valve.open()
            await stopping
        return failures

    assert {failure.code for failure in asyncio.run(scenario())} == {grpc.StatusCode.UNAVAILABLE}
    assert valve.sizes == [1]


def test_a_cancelled_call_is_not_computed(serve, pictures, valve):
    async def scenario():
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
            return leased, held

    assert asyncio.run(scenario()) == (2, 1)
    assert valve.sizes == [1, 1]


def test_one_damaged_profile_fails_alone(serve, repository, pictures):
    model = repository / "colours" / "3" / "accurate" / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)

    async def scenario():
        async with serve() as client:
            failed = await client.profiles.GetProfile(pb.GetProfileRequest(profile="accurate"))
            states = (await client.metrics()).sum("damoserve_profile_state", profile="accurate", state="failed")
            failure = await client.failure(client.detect(pictures.red, profile="accurate"))
            return failed, states, failure, await client.detect(pictures.red)

    failed, state, failure, answer = asyncio.run(scenario())
    assert failed.state == pb.Profile.STATE_FAILED
    assert "SHA-256" in failed.error
    assert failed.average_precision == 0.6
    assert not failed.HasField("expected_latency")
    assert state == 1
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "PROFILE_UNAVAILABLE")
    assert answer.profile == "quick"


def test_profiles_that_the_runtime_cannot_use_fail_alone(serve, repository, new_profile, pictures):
    new_profile(repository, "garbage", ap=0.9, model=b"no model")
    (repository / "colours" / "3" / "empty").mkdir()
    other = repository / "colours" / "3" / "other"
    new_profile(repository, "other", ap=0.9)
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"candidates": 4', '"candidates": 5'))

    async def scenario():
        async with serve() as client:
            listed = (await client.profiles.ListProfiles(pb.ListProfilesRequest(model="colours"))).profiles
            return {profile.profile: profile.error for profile in listed}, await client.detect(pictures.red)

    errors, answer = asyncio.run(scenario())
    assert list(errors) == ["accurate", "quick", "empty", "garbage", "other"]
    assert "ONNX Runtime refused the model" in errors["garbage"]
    assert "is not a valid manifest" in errors["empty"]
    assert "its manifest promises" in errors["other"]
    assert answer.profile == "accurate"


def test_the_newest_version_serves_and_the_default_model_can_be_set(serve, repository, new_profile, pictures):
    new_profile(repository, "only", ap=0.1, name="birds")
    (repository / "colours" / "3").rename(repository / "colours" / "2")
    new_profile(repository, "only", ap=0.1)

    async def scenario():
        async with serve(default_model="colours") as client:
            answer = await client.detect(pictures.red)
            other = await client.detect(pictures.red, model="birds")
            return (answer.model, answer.model_version, answer.profile), other.model

    assert asyncio.run(scenario()) == (("colours", 3, "only"), "birds")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repository": "nowhere"}, "the repository is empty"),
        ({"default_model": "birds"}, "'birds' is not in"),
        ({"providers": ["AbacusExecutionProvider"]}, "has no AbacusExecutionProvider"),
    ],
)
def test_with_nothing_to_serve_it_does_not_start(application, settings, message):
    async def scenario():
        async with application(**settings):
            pass

    with pytest.raises(CatalogueError, match=message):
        asyncio.run(scenario())


def test_the_services_can_be_listed(serve):
    async def scenario():
        async with serve() as client:
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            stream = reflection_pb2_grpc.ServerReflectionStub(client.channel).ServerReflectionInfo(iter([request]))
            return {service.name async for answer in stream for service in answer.list_services_response.service}

    assert asyncio.run(scenario()) >= {DETECTION, "damoserve.v1.ProfileService", "grpc.health.v1.Health"}


def test_a_taken_port_is_an_error(serve, application):
    async def scenario():
        async with serve() as client:
            with pytest.raises(OSError, match="cannot listen on"):
                async with application(port=client.application.port):
                    pass

    asyncio.run(scenario())


def test_the_command_serves_until_a_signal(repository, pictures):
    arguments = ["--repository", str(repository), "--port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-m", "damoserve_server", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        at = r"127\.0\.0\.1:\d+"
        served = re.fullmatch(rf"serving colours \(accurate, quick\) on ({at}), metrics on http://{at}/metrics\n", line)
        with grpc.insecure_channel(served[1]) as channel:
            request = pb.DetectRequest(image=pb.Image(content=pictures.red))
            assert len(pb_grpc.DetectionServiceStub(channel).Detect(request, timeout=20).detections) == 4
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_the_command_says_why_it_cannot_start(tmp_path):
    command = [sys.executable, "-m", "damoserve_server", "--repository", str(tmp_path), "--port", "0"]
    result = subprocess.run([*command, "--metrics-port", "0"], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "damoserve cannot start: no profile could be loaded: the repository is empty" in result.stderr


BLOCKED = """
import importlib, pkgutil, sys
for name in ("torch", "onnx", "damoserve_compress", "damoserve_client"):
    sys.modules[name] = None
import damoserve_server
for module in pkgutil.walk_packages(damoserve_server.__path__, "damoserve_server."):
    importlib.import_module(module.name)
"""


def test_the_server_needs_neither_torch_nor_onnx_nor_the_other_packages():
    subprocess.run([sys.executable, "-c", BLOCKED], check=True, timeout=60)
