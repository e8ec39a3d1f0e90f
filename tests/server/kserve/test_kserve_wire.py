"""The KServe v2 service by the messages themselves: what Triton's own client would never send, too."""

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from damoserve.kserve.v2 import inference_pb2 as pb
from damoserve.v1 import admin_pb2
from damoserve_profiles.repository import ALIASES_FILE
from damoserve_server.detection import detector
from damoserve_server.detection.request import DetectionRequest, DetectionResult
from damoserve_server.kserve.tensors import pack, unpack
from tests.support.administration import FRENCH, administered, only_version
from tests.support.pictures import Pictures
from tests.support.server import Serve, ServerClient
from tests.support.timeouts import TIMEOUT
from tests.support.valve import Valve

Request = pb.ModelInferRequest
Input = pb.ModelInferRequest.InferInputTensor
Contents = pb.InferTensorContents
M = TypeVar("M", bound=Message)


def method(client: ServerClient, name: str, response: type[M]) -> "grpc.aio.UnaryUnaryMultiCallable[Message, M]":
    return client.channel.unary_unary(
        f"/inference.GRPCInferenceService/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response.FromString,
    )


def infer(client: ServerClient, request: Request) -> Awaitable[pb.ModelInferResponse]:
    return method(client, "ModelInfer", pb.ModelInferResponse)(request, timeout=TIMEOUT)


def length(number: int) -> bytes:
    return struct.pack("<I", number)


def typed(name: str, datatype: str, shape: Sequence[int], **contents: Any) -> Request:
    return Request(inputs=[Input(name=name, datatype=datatype, shape=shape, contents=Contents(**contents))])


def raw(name: str, datatype: str, shape: Sequence[int], *entries: bytes) -> Request:
    return Request(inputs=[Input(name=name, datatype=datatype, shape=shape)], raw_input_contents=entries)


async def test_typed_contents_are_answered_in_typed_contents(serve: Serve, pictures: Pictures) -> None:
    image = pictures.draw("red", "black", "blue", "black", size=(16, 8))
    pixels = np.asarray(image)
    async with serve() as client:
        requests = [
            typed("images", "BYTES", [1], bytes_contents=[pictures.encode(image)]),
            typed("pixels", "UINT8", [1, *pixels.shape], uint_contents=pixels.ravel().tolist()),
        ]
        result = [await infer(client, request) for request in requests]
    for response in result:
        assert not response.raw_output_contents
        outputs = {output.name: output.contents for output in response.outputs}
        assert list(outputs["count"].int_contents) == [2]
        assert list(outputs["boxes"].fp32_contents) == [0, 0, 8, 4, 0, 4, 8, 8]
        assert list(outputs["label_names"].bytes_contents) == [b"red", b"blue"]
        assert list(outputs["image_size"].int_contents) == [16, 8]


async def test_an_empty_model_name_means_the_default_model(serve: Serve, pictures: Pictures) -> None:
    async with serve() as client:
        response = await infer(client, typed("images", "BYTES", [1], bytes_contents=[pictures.red]))
        result = response.model_name, response.model_version, response.outputs[0].contents.int_contents[0]
    assert result == ("colours", "3", 4)


def mixed() -> Request:
    request = raw("pixels", "UINT8", [1, 1, 1, 3], bytes(3))
    request.inputs[0].contents.uint_contents.extend([0, 0, 0])
    return request


def malformed(red: bytes) -> dict[str, tuple[Request, str]]:
    return {
        "raw and contents": (mixed(), "inputs.pixels.contents"),
        "raw too short": (raw("pixels", "UINT8", [1, 2, 2, 3], bytes(11)), "raw_input_contents"),
        "raw too long": (raw("pixels", "UINT8", [1, 2, 2, 3], bytes(13)), "raw_input_contents"),
        "one image, two announced": (raw("images", "BYTES", [2], length(len(red)) + red), "raw_input_contents"),
        "two images, one announced": (raw("images", "BYTES", [1], 2 * (length(len(red)) + red)), "raw_input_contents"),
        "image cut short": (raw("images", "BYTES", [1], length(len(red)) + red[:-1]), "raw_input_contents"),
        "a length beyond everything": (raw("images", "BYTES", [1], length(2**32 - 1)), "raw_input_contents"),
        "half a length": (raw("images", "BYTES", [1], b"\0\0"), "raw_input_contents"),
        "two entries": (raw("pixels", "UINT8", [1, 1, 1, 3], bytes(3), bytes(3)), "raw_input_contents"),
        "no contents": (raw("images", "BYTES", [1]), "inputs.images.contents"),
        "contents of another type": (
            typed("images", "BYTES", [1], bytes_contents=[red], fp32_contents=[1.0]),
            "inputs.images.contents",
        ),
        "too few elements": (typed("pixels", "UINT8", [1, 1, 1, 3], uint_contents=[0]), "inputs.pixels.contents"),
        "elements above 255": (
            typed("pixels", "UINT8", [1, 1, 1, 3], uint_contents=[256, 0, 0]),
            "inputs.pixels.contents",
        ),
        "a shape beyond memory": (
            raw("pixels", "UINT8", [1, 2**62, 2**62, 3], bytes(3)),
            "raw_input_contents",
        ),
        "negative lengths": (raw("pixels", "UINT8", [1, -1, -1, 3], bytes(3)), "inputs.pixels.shape"),
        "many dimensions": (raw("images", "BYTES", [1] * 100_000, length(0)), "inputs.images.shape"),
        "no dimensions": (raw("images", "BYTES", [], length(0)), "inputs.images.shape"),
        "many outputs": (
            Request(outputs=[Request.InferRequestedOutputTensor(name="boxes")] * 100_000),
            "outputs",
        ),
        "a long name": (typed("x" * 100_000, "BYTES", [1], bytes_contents=[red]), "inputs"),
        "a long datatype": (typed("images", "x" * 100_000, [1], bytes_contents=[red]), "inputs.images.datatype"),
        "many parameters": (
            Request(parameters={str(number): pb.InferParameter(bool_param=True) for number in range(10_000)}),
            "parameters",
        ),
        "a long parameter": (Request(parameters={"x" * 100_000: pb.InferParameter(int64_param=1)}), "parameters"),
        "a parameter without a value": (Request(parameters={"timeout": pb.InferParameter()}), "parameters.timeout"),
        "a parameter of an input": (
            Request(
                inputs=[
                    Input(
                        name="images", datatype="BYTES", shape=[1], parameters={"x": pb.InferParameter(int64_param=1)}
                    )
                ]
            ),
            "inputs.images.parameters",
        ),
        "a broken image": (typed("images", "BYTES", [2], bytes_contents=[red, b"GIF"]), "inputs[0][1]"),
    }


async def test_malformed_requests(serve: Serve, pictures: Pictures) -> None:
    cases = malformed(pictures.red)
    outcomes = {}
    async with serve() as client:
        for name, (request, _) in cases.items():
            failure = await client.failure(infer(client, request))
            assert failure.code == grpc.StatusCode.INVALID_ARGUMENT, (name, failure.message)
            assert len(failure.message) < 500, name
            outcomes[name] = failure.detail(error_details_pb2.BadRequest).field_violations[0].field
            assert len((await client.detect(pictures.red)).detections) == 4
    assert outcomes == {name: field for name, (_, field) in cases.items()}


async def test_a_request_that_fails_withdraws_its_other_images(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    async with serve(valve.load) as client:
        valve.shut()
        blocking = asyncio.ensure_future(client.detect(pictures.red))
        await valve.entered()
        request = typed("images", "BYTES", [2], bytes_contents=[pictures.red, b"GIF"])
        failure = await client.failure(infer(client, request))
        await client.until(lambda now: now.sum("damoserve_pool_slots", state="leased") == 1)
        valve.open()
        await blocking
    assert failure.reason == "IMAGE_UNDECODABLE"
    assert len(valve.sizes) == 1


async def test_the_priority_reaches_the_detector(
    serve: Serve, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    detect = detector.Detector.detect

    async def spy(self: detector.Detector, request: DetectionRequest) -> DetectionResult:
        seen.append(request.priority)
        return await detect(self, request)

    monkeypatch.setattr(detector.Detector, "detect", spy)
    async with serve() as client:
        for parameters in ({}, *({"priority": pb.InferParameter(uint64_param=value)} for value in (0, 1, 7))):
            request = typed("images", "BYTES", [1], bytes_contents=[pictures.red])
            request.MergeFrom(Request(parameters=parameters))
            await infer(client, request)
    assert seen == [5, 5, 1, 5]


async def test_models_are_loaded_and_unloaded_where_that_is_allowed(serve: Serve) -> None:
    load, unload = pb.RepositoryModelLoadRequest, pb.RepositoryModelUnloadRequest
    async with serve(kserve_admin=True) as client:
        loading = method(client, "RepositoryModelLoad", pb.RepositoryModelLoadResponse)
        unloading = method(client, "RepositoryModelUnload", pb.RepositoryModelUnloadResponse)
        ready = method(client, "ModelReady", pb.ModelReadyResponse)
        metadata = method(client, "ServerMetadata", pb.ServerMetadataResponse)

        async def is_ready() -> list[bool]:
            names = ("colours", "colours/quick")
            return [(await ready(pb.ModelReadyRequest(name=name), timeout=TIMEOUT)).ready for name in names]

        states = []
        for call, request in (
            (unloading, unload(model_name="colours/quick")),
            (unloading, unload(model_name="colours")),
            (loading, load(model_name="colours/quick")),
            (unloading, unload(model_name="colours")),
            (loading, load(model_name="colours")),
        ):
            await call(request, timeout=TIMEOUT)
            states.append(await is_ready())
        configured = load(parameters={"config": pb.ModelRepositoryParameter(string_param="{}")})
        refused = [
            (await client.failure(loading(configured, timeout=TIMEOUT))).reason,
            (await client.failure(unloading(unload(repository_name="other"), timeout=TIMEOUT))).reason,
            *[(await client.failure(unloading(unload(model_name=name)))).reason for name in ("", "/quick")],
        ]
        extensions = (await metadata(pb.ServerMetadataRequest(), timeout=TIMEOUT)).extensions
    assert states == [[True, False], [False, False], [True, True], [False, False], [True, True]]
    assert refused == ["NOT_OFFERED"] * 2 + ["MODEL_NOT_FOUND"] * 2
    assert "model_repository" in extensions


async def test_a_request_is_answered_by_one_version_though_another_takes_over(
    serve: Serve, repository: Path, new_profile: Callable[..., None], pictures: Pictures, valve: Valve
) -> None:
    new_profile(repository, "quick", ap=0.5, version=4, labels=FRENCH)
    (repository / "colours" / ALIASES_FILE).write_text('{"serving": 3}')
    settings = {"workers": 1, "max_batch_size": 1}  # so only two images of a request are worked on at a time
    tensor = pb.ModelInferRequest.InferInputTensor(name="images", datatype="BYTES", shape=[5])

    def ask(client: ServerClient, version: str) -> Awaitable[pb.ModelInferResponse]:
        request = pb.ModelInferRequest(model_name="colours/quick", model_version=version, inputs=[tensor])
        request.raw_input_contents.append(pack([pictures.red] * 5))
        request.outputs.add(name="label_names")
        return method(client, "ModelInfer", pb.ModelInferResponse)(request, timeout=TIMEOUT)

    async with administered(serve, only_version(3, valve.load), **settings) as (client, admin):
        valve.shut()
        whichever, third = ask(client, ""), ask(client, "3")
        await client.until(lambda now: now.sum("damoserve_queued_requests", state="ready") == 3)
        await admin.ReloadModel(admin_pb2.ReloadModelRequest(model="colours", version=4))
        valve.open()
        answer, failure = await whichever, await client.failure(third)
    assert answer.model_version == "4"
    assert set(unpack(answer.raw_output_contents[0], 5 * 4)) == {b"rouge"}
    assert failure.reason == "MODEL_NOT_FOUND"


async def test_streams_are_bounded(serve: Serve, pictures: Pictures) -> None:
    """Each may have as many requests in the memory of the server as it may work on."""
    async with serve(max_streams=1) as client:
        open_stream = client.channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )

        async def answered() -> "grpc.aio.StreamStreamCall[Message, pb.ModelStreamInferResponse]":
            stream = open_stream(timeout=TIMEOUT)
            await stream.write(pb.ModelInferRequest(id="one"))
            answer = await stream.read()
            assert isinstance(answer, pb.ModelStreamInferResponse), await stream.details()
            assert answer.infer_response.id == "one"
            return stream

        first = await answered()
        refused = await client.failure(open_stream(timeout=TIMEOUT).read())
        first.cancel()
        labels = {"grpc_method": "ModelStreamInfer", "grpc_code": "CANCELLED"}
        await client.until(lambda now: now.sum("grpc_server_handled_total", **labels) == 1)
        (await answered()).cancel()
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")


async def test_a_server_that_drains_changes_no_model(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    unload = pb.RepositoryModelUnloadRequest(model_name="colours/quick")
    async with serve(valve.load, kserve_admin=True) as client:
        unloading = method(client, "RepositoryModelUnload", pb.RepositoryModelUnloadResponse)
        valve.shut()
        accepted = asyncio.ensure_future(client.detect(pictures.red))
        await valve.entered()
        stopping = asyncio.ensure_future(client.application.stop())
        while (refused := await client.failure(client.detect(b""))).reason != "SHUTTING_DOWN":
            pass
        failure = await client.failure(unloading(unload, timeout=TIMEOUT))
        valve.open()
        await accepted
        await stopping
    for each in (refused, failure):
        assert (each.code, each.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


async def test_only_what_serves_is_listed_if_so_asked(
    serve: Serve, repository: Path, new_profile: Callable[..., None]
) -> None:
    new_profile(repository, "broken", ap=0.9, model=b"no network")
    new_profile(repository, "fp32", ap=0.9, model=b"no network", name="shapes")
    async with serve() as client:
        index = method(client, "RepositoryIndex", pb.RepositoryIndexResponse)
        all_of_them = await index(pb.RepositoryIndexRequest(), timeout=TIMEOUT)
        serving = await index(pb.RepositoryIndexRequest(ready=True), timeout=TIMEOUT)
        every, ready = (
            {model.name: model.reason for model in all_of_them.models},
            [model.name for model in serving.models],
        )
    assert ready == ["colours", "colours/accurate", "colours/quick"]
    assert set(every) - set(ready) == {"colours/broken", "shapes", "shapes/fp32"}
    assert all(bool(reason) == (name not in ready) for name, reason in every.items())


@pytest.mark.parametrize("name", ["ModelInfer", "ModelReady", "CudaSharedMemoryStatus"])
async def test_every_method_has_its_metrics_from_the_start(serve: Serve, name: str) -> None:
    async with serve() as client:
        labels = {"grpc_service": "inference.GRPCInferenceService", "grpc_method": name}
        result = (await client.metrics()).sum("grpc_server_started_total", **labels)
    assert result == 0
