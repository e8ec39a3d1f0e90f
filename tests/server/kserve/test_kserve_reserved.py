"""Triton's reserved parameters by their values: which are taken, which are refused, and what a stream's answers say."""

import struct
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.message import Message

from damoserve.kserve.v2 import inference_pb2 as pb
from damoserve_server.kserve.tensors import pack
from tests.support.pictures import Pictures
from tests.support.server import Serve, ServerClient

TIMEOUT = 20.0
Parameter = pb.InferParameter
Holder = pb.ModelInferRequest | pb.ModelInferRequest.InferInputTensor | pb.ModelInferRequest.InferRequestedOutputTensor
M = TypeVar("M", bound=Message)
OFF, ON = Parameter(bool_param=False), Parameter(bool_param=True)
ZERO, ONE, NO_TEXT, A_TEXT = (
    Parameter(int64_param=0),
    Parameter(int64_param=1),
    Parameter(string_param=""),
    Parameter(string_param="a"),
)


def method(client: ServerClient, name: str, request: Message, response: type[M]) -> Awaitable[M]:
    return client.channel.unary_unary(
        f"/inference.GRPCInferenceService/{name}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=response.FromString,
    )(request, timeout=TIMEOUT)


def infer(client: ServerClient, request: pb.ModelInferRequest) -> Awaitable[pb.ModelInferResponse]:
    return method(client, "ModelInfer", request, pb.ModelInferResponse)


def raw_request(content: bytes, place: str = "request", /, **parameters: Parameter) -> pb.ModelInferRequest:
    """For one image, with the parameters in their place."""
    request = pb.ModelInferRequest(id="mine", raw_input_contents=[content])
    request.inputs.add(name="images", datatype="BYTES", shape=[1])
    request.outputs.add(name="count")
    holders: dict[str, Holder] = {"request": request, "input": request.inputs[0], "output": request.outputs[0]}
    for name, parameter in parameters.items():
        holders[place].parameters[name].CopyFrom(parameter)
    return request


def typed_request(content: bytes, place: str = "request", /, **parameters: Parameter) -> pb.ModelInferRequest:
    request = raw_request(b"", place, **parameters)
    request.ClearField("raw_input_contents")
    request.inputs[0].contents.bytes_contents.append(content)
    return request


def taken(red: bytes) -> dict[str, pb.ModelInferRequest]:
    packed = pack([red])
    size = Parameter(int64_param=len(packed))
    return {
        "no empty final answer": raw_request(packed, triton_enable_empty_final_response=OFF),
        "an empty final answer": raw_request(packed, triton_enable_empty_final_response=ON),
        "no sequence": raw_request(packed, sequence_id=ZERO, sequence_start=OFF, sequence_end=OFF),
        "no sequence, unsigned": raw_request(packed, sequence_id=Parameter(uint64_param=0)),
        "no sequence, by name": raw_request(packed, sequence_id=NO_TEXT),
        "no headers": raw_request(packed, headers=NO_TEXT),
        "neither priority nor timeout": raw_request(packed, priority=ZERO, timeout=ZERO),
        "raw answers to a raw request": raw_request(packed, binary_data_output=ON),
        "typed answers to a typed request": typed_request(red, binary_data_output=OFF),
        "the size of the raw input": raw_request(packed, "input", binary_data_size=size),
        "no raw input": typed_request(red, "input", binary_data_size=ZERO),
        "no classes": raw_request(packed, "output", classification=ZERO),
        "a raw output": raw_request(packed, "output", binary_data=ON),
        "a typed output": typed_request(red, "output", binary_data=OFF),
    }


async def test_parameters_that_ask_for_nothing_else_are_taken(serve: Serve, pictures: Pictures) -> None:
    async with serve() as client:
        result = {name: await infer(client, request) for name, request in taken(pictures.red).items()}
    for name, answer in result.items():
        assert (answer.id, [output.name for output in answer.outputs]) == ("mine", ["count"]), name
        counts = [struct.unpack("<i", raw)[0] for raw in answer.raw_output_contents]
        assert [*answer.outputs[0].contents.int_contents, *counts] == [4], name
        assert "triton_final_response" not in answer.parameters, "as with Triton, it belongs to streams"


ASKS_FOR_MORE = [
    ("request", "sequence_id", ONE),
    ("request", "sequence_id", A_TEXT),
    ("request", "sequence_start", ON),
    ("request", "sequence_end", ON),
    ("request", "headers", A_TEXT),
    ("request", "triton_final_response", ON),
    ("request", "triton_of_tomorrow", OFF),
    ("input", "binary_data_size", ONE),
    ("input", "shared_memory_region", NO_TEXT),
    ("input", "shared_memory_byte_size", ONE),
    ("input", "shared_memory_offset", ZERO),
    ("output", "classification", ONE),
    ("output", "classification", Parameter(int64_param=-1)),
    ("output", "shared_memory_region", NO_TEXT),
    ("output", "shared_memory_byte_size", ONE),
    ("output", "shared_memory_offset", ZERO),
    ("output", "triton_enable_empty_final_response", ON),
]
ASKS_TYPED_REQUEST_FOR_RAW = [
    ("request", "binary_data_output", ON),
    ("input", "binary_data_size", ONE),
    ("output", "binary_data", ON),
]
WRONG_TYPE = [
    ("request", "triton_enable_empty_final_response", ONE),
    ("request", "sequence_id", OFF),
    ("request", "sequence_id", Parameter()),
    ("request", "sequence_start", ZERO),
    ("request", "sequence_end", NO_TEXT),
    ("request", "headers", OFF),
    ("request", "binary_data_output", ZERO),
    ("input", "binary_data_size", NO_TEXT),
    ("output", "classification", OFF),
    ("output", "binary_data", ONE),
]
OUT_OF_PLACE = [
    ("input", "sequence_start", OFF),
    ("request", "binary_data_size", ZERO),
    ("input", "binary_data", OFF),
    ("request", "classification", ZERO),
    ("request", "sequence_number", ZERO),
]


NOT_OFFERED = (grpc.StatusCode.UNIMPLEMENTED, "NOT_OFFERED")
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "PARAMETER_INVALID")


@pytest.mark.parametrize(
    ("make", "cases", "how"),
    [
        (raw_request, ASKS_FOR_MORE, NOT_OFFERED),
        (typed_request, ASKS_TYPED_REQUEST_FOR_RAW, NOT_OFFERED),
        (raw_request, WRONG_TYPE, INVALID),
        (raw_request, OUT_OF_PLACE, INVALID),
    ],
    ids=["asks for more", "asks a typed request for raw contents", "wrong type", "out of place"],
)
async def test_parameters_whose_wish_would_be_ignored_are_refused(
    serve: Serve,
    pictures: Pictures,
    make: Callable[..., pb.ModelInferRequest],
    cases: list[tuple[str, str, Parameter]],
    how: tuple[grpc.StatusCode, str],
) -> None:
    content = pack([pictures.red]) if make is raw_request else pictures.red
    async with serve() as client:
        result = [
            await client.failure(infer(client, make(content, place, **{name: value}))) for place, name, value in cases
        ]
    for (place, name, value), failure in zip(cases, result, strict=True):
        assert (failure.code, failure.reason) == how, (place, name, value)


@pytest.mark.parametrize("asked", [{}, {"triton_enable_empty_final_response": ON}])
async def test_a_stream_has_one_answer_to_each_request_and_says_that_it_is_final(
    serve: Serve, pictures: Pictures, asked: dict[str, Parameter]
) -> None:
    good = raw_request(pack([pictures.red]), **asked)
    bad = raw_request(pack([b"GIF"]), **asked)
    async with serve() as client:
        stream = client.channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        answers = [answer async for answer in stream(iter([good, bad, good]), timeout=TIMEOUT)]
    assert [bool(answer.error_message) for answer in answers] == [False, True, False]
    for answer in answers:
        assert answer.infer_response.id == "mine"
        assert answer.infer_response.parameters["triton_final_response"] == ON


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
async def test_a_lone_file_may_lack_its_length(serve: Serve, pictures: Pictures, kind: str) -> None:
    """As perf_analyzer sends the `b64` content of its input."""
    file = pictures.encode(pictures.draw("red", "lime", "blue", "black"), kind)
    two = raw_request(file)
    two.inputs[0].shape[:] = [2]
    async with serve() as client:
        answer = await infer(client, raw_request(file))
        count, failure = struct.unpack("<i", answer.raw_output_contents[0]), await client.failure(infer(client, two))
    assert count == (3,)
    assert failure.reason == "TENSOR_INVALID"


async def test_contents_with_a_length_are_never_mistaken_for_a_file(serve: Serve, pictures: Pictures) -> None:
    """This length begins like a BMP file."""
    red = pictures.red
    padded = red + bytes(int.from_bytes(b"BM\1\0", "little") - len(red))
    async with serve() as client:
        result = await infer(client, raw_request(pack([padded])))
    assert struct.unpack("<i", result.raw_output_contents[0]) == (4,)


def trace_settings(**settings: list[str]) -> pb.TraceSettingRequest:
    values = {name: pb.TraceSettingRequest.SettingValue(value=value) for name, value in settings.items()}
    return pb.TraceSettingRequest(settings=values)


def log_settings(**settings: dict[str, Any]) -> pb.LogSettingsRequest:
    return pb.LogSettingsRequest(
        settings={name: pb.LogSettingsRequest.SettingValue(**value) for name, value in settings.items()}
    )


@pytest.mark.parametrize(("level", "info", "verbose"), [("debug", True, 1), ("info", True, 0), ("warning", False, 0)])
async def test_settings_of_traces_and_log_are_read_and_not_changed(
    serve: Serve, level: str, info: bool, verbose: int
) -> None:
    async with serve(log_level=level) as client:

        def trace(**settings: list[str]) -> Awaitable[pb.TraceSettingResponse]:
            return method(client, "TraceSetting", trace_settings(**settings), pb.TraceSettingResponse)

        def log(**settings: dict[str, Any]) -> Awaitable[pb.LogSettingsResponse]:
            return method(client, "LogSettings", log_settings(**settings), pb.LogSettingsResponse)

        of_unknown = pb.TraceSettingRequest(model_name="nothing")
        kept = [await trace(), await trace(trace_level=["OFF"]), await trace(trace_rate=[])]
        logged = [await log(), await log(log_info={"bool_param": info})]
        failures = [
            await client.failure(trace(trace_level=["TIMESTAMPS"])),
            await client.failure(trace(trace_rate=["10"])),
            await client.failure(log(log_info={"bool_param": not info})),
            await client.failure(log(log_format={"string_param": "ISO8601"})),
            await client.failure(method(client, "TraceSetting", of_unknown, pb.TraceSettingResponse)),
        ]
        reasons = [failure.reason for failure in failures]
    assert [list(answer.settings["trace_level"].value) for answer in kept] == [["OFF"]] * 3
    for answer in logged:
        assert answer.settings["log_error"].bool_param
        assert answer.settings["log_info"].bool_param == info
        assert answer.settings["log_verbose_level"].uint32_param == verbose
    assert reasons == ["NOT_OFFERED"] * 4 + ["MODEL_NOT_FOUND"]


async def test_a_model_is_unloaded_with_what_depends_on_it(serve: Serve) -> None:
    """Nothing does, so both values are kept; Triton's client sends one of them every time."""
    async with serve(kserve_admin=True) as client:

        def unload(name: str, **parameters: bool) -> Awaitable[pb.RepositoryModelUnloadResponse]:
            values = {key: pb.ModelRepositoryParameter(bool_param=value) for key, value in parameters.items()}
            request = pb.RepositoryModelUnloadRequest(model_name=name, parameters=values)
            return method(client, "RepositoryModelUnload", request, pb.RepositoryModelUnloadResponse)

        await unload("colours/quick", unload_dependents=False)
        await unload("colours/accurate", unload_dependents=True)
        failure = await client.failure(unload("colours", at_once=True))
        ready = await method(client, "ModelReady", pb.ModelReadyRequest(name="colours"), pb.ModelReadyResponse)
        result = failure.reason, ready.ready
    assert result == ("NOT_OFFERED", False)
