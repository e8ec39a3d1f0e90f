"""What is served no longer is freed with the last request for it, and not at the next garbage collection.

A collection of the oldest generation may be hours away, and until then two versions of a model fill the memory.
"""

import asyncio
import gc
import logging
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.status_pb2 import Status

from damoserve.kserve.v2 import inference_pb2 as kserve
from damoserve.v1 import admin_pb2 as admin_pb
from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_profiles.manifest import Manifest
from damoserve_profiles.repository import ALIASES_FILE
from damoserve_server.engines.engine import Engine, EngineLoader, EngineOptions
from damoserve_server.engines.onnxruntime import OnnxRuntimeEngine
from damoserve_server.kserve.tensors import pack
from damoserve_server.models.catalogue import ActiveProfile
from tests.support.administration import active, administered
from tests.support.pictures import Pictures
from tests.support.server import Failure, Serve, ServerClient
from tests.support.timeouts import TIMEOUT
from tests.support.valve import Valve

BRIEF = Duration(nanos=50_000_000)
UNLOAD = admin_pb.UnloadProfileRequest(profile="quick")
Call = Callable[[ServerClient, bytes, Valve], Awaitable[Failure | Status]]
Loading = tuple[EngineLoader, "list[weakref.ref[Engine]]"]


@pytest.fixture(autouse=True)
def no_collections() -> Iterator[None]:
    """Nor a log: pytest keeps what was logged, and with it the tracebacks."""
    gc.collect()
    gc.disable()
    logging.disable()
    yield
    logging.disable(logging.NOTSET)
    gc.enable()


async def freed(*references: "weakref.ref[Any]") -> None:
    """Returns when none of them is alive: a worker answers before it lets go."""
    async with asyncio.timeout(TIMEOUT):
        while any(reference() is not None for reference in references):
            await asyncio.sleep(0)


def quick(client: ServerClient) -> "weakref.ref[ActiveProfile]":
    return weakref.ref(next(profile for profile in active(client) if profile.name == "quick"))


async def call_undecodable(client: ServerClient, image: bytes, valve: Valve) -> Failure:
    return await client.failure(client.detect(b"no image", profile="quick"))


async def call_expired(client: ServerClient, image: bytes, valve: Valve) -> Failure:
    client.learn(0.001)
    valve.shut()
    failure = await client.failure(client.detect(image, profile="quick", latency_budget=BRIEF))
    valve.open()
    return failure


async def call_failing(client: ServerClient, image: bytes, valve: Valve) -> Failure:
    valve.fault = RuntimeError("the engine is broken")
    return await client.failure(client.detect(image, profile="quick"))


async def call_triton(client: ServerClient, image: bytes, valve: Valve) -> Failure:
    infer = client.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=kserve.ModelInferRequest.SerializeToString,
        response_deserializer=kserve.ModelInferResponse.FromString,
    )
    tensor = kserve.ModelInferRequest.InferInputTensor(name="images", datatype="BYTES", shape=[2])
    request = kserve.ModelInferRequest(model_name="colours/quick", inputs=[tensor])
    request.raw_input_contents.append(pack([image, b"no image"]))
    return await client.failure(infer(request, timeout=TIMEOUT))


async def frame_undecodable(client: ServerClient, image: bytes, valve: Valve) -> Status:
    def frames() -> Iterator[pb.DetectStreamRequest]:
        yield pb.DetectStreamRequest(options=pb.StreamOptions(profile="quick"))
        yield pb.DetectStreamRequest(frame=pb.Frame(image=pb.Image(content=b"no image")))

    [answer] = [answer async for answer in pb_grpc.DetectionServiceStub(client.channel).DetectStream(frames())]
    return answer.error


@pytest.mark.parametrize("call", [call_undecodable, call_expired, call_failing, call_triton, frame_undecodable])
async def test_a_request_that_fails_keeps_nothing(serve: Serve, pictures: Pictures, valve: Valve, call: Call) -> None:
    async with administered(serve, valve.load) as (client, admin):
        await client.detect(pictures.red, profile="quick")
        assert (await call(client, pictures.red, valve)).message
        profile = quick(client)
        await admin.UnloadProfile(UNLOAD)
        await freed(profile)


async def test_an_open_stream_keeps_nothing_but_its_frames(serve: Serve, pictures: Pictures) -> None:
    async with administered(serve) as (client, admin):
        stream = pb_grpc.DetectionServiceStub(client.channel).DetectStream()
        await stream.write(pb.DetectStreamRequest(options=pb.StreamOptions(profile="quick")))
        await stream.write(pb.DetectStreamRequest(frame=pb.Frame(image=pb.Image(content=pictures.red))))
        answer = await asyncio.wait_for(stream.read(), TIMEOUT)
        assert isinstance(answer, pb.DetectStreamResponse)
        assert answer.result.profile == "quick"
        profile = quick(client)
        await admin.UnloadProfile(UNLOAD)
        await freed(profile)
        stream.cancel()


@pytest.fixture
def loading(valve: Valve) -> Loading:
    """A loader that the valve holds up in version 4, and the engines of that version."""
    engines: list[weakref.ref[Engine]] = []

    def load(model: bytes, manifest: Manifest, options: EngineOptions) -> Engine:
        load_engine: EngineLoader = valve.load if manifest.version == 4 else OnnxRuntimeEngine
        engine = load_engine(model, manifest, options)
        if manifest.version == 4:
            engines.append(weakref.ref(engine))
        return engine

    return load, engines


async def test_a_version_that_is_refused_keeps_nothing(
    serve: Serve, repository: Path, new_profile: Callable[..., None], loading: Loading
) -> None:
    """Its first profile is loaded already when the second turns out to be damaged."""
    (repository / "colours" / ALIASES_FILE).write_text('{"serving": 3}')
    new_profile(repository, "accurate", ap=0.7, version=4)
    new_profile(repository, "quick", ap=0.5, version=4, model=b"no network")
    load, engines = loading
    async with administered(serve, load) as (client, admin):
        call = admin.ReloadModel(admin_pb.ReloadModelRequest(model="colours", version=4))
        assert (await client.failure(call)).reason == "VERSION_REFUSED"
        assert len(engines) == 1
        await freed(*engines)


async def test_a_version_whose_loading_is_given_up_keeps_nothing(
    serve: Serve, repository: Path, new_profile: Callable[..., None], valve: Valve, loading: Loading
) -> None:
    (repository / "colours" / ALIASES_FILE).write_text('{"serving": 3}')
    new_profile(repository, "accurate", ap=0.7, version=4)
    load, engines = loading
    async with administered(serve, load) as (client, admin):
        valve.shut()
        call = admin.ReloadModel(admin_pb.ReloadModelRequest(model="colours", version=4))
        await valve.entered()
        call.cancel()
        labels = {"grpc_method": "ReloadModel", "grpc_code": "CANCELLED"}
        await client.until(lambda now: now.sum("grpc_server_handled_total", **labels) == 1)
        valve.open()
        await client.until(lambda now: now.sum("damoserve_reloads_total", result="abandoned") == 1)
        assert len(engines) == 1
        await freed(*engines)
