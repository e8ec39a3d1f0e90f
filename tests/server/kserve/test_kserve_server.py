"""What else Triton's own client can ask of the KServe v2 service."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, FileDescriptor

from damoserve.kserve.v2 import inference_pb2
from tests.support.pictures import Pictures
from tests.support.server import MakeApplication, Serve, listening
from tests.support.timeouts import TIMEOUT
from tests.support.triton_calls import (
    InferenceServerException,
    call,
    files_input,
    infer,
    pixels_input,
    refusal,
    triton,
)
from tests.support.valve import Valve

triton_pb = pytest.importorskip("tritonclient.grpc.service_pb2")
triton_config_pb = pytest.importorskip("tritonclient.grpc.model_config_pb2")


async def test_requests_that_are_refused(serve: Serve, pictures: Pictures) -> None:
    red = files_input([pictures.red])
    shared = triton.InferInput("images", [1], "BYTES")
    shared.set_shared_memory("region", 10)
    answer_in_shared = triton.InferRequestedOutput("boxes")
    answer_in_shared.set_shared_memory("region", 10)
    output = triton.InferRequestedOutput
    wrong_type = triton.InferInput("images", [1], "FP32")
    wrong_type.set_data_from_numpy(np.zeros(1, np.float32))
    unnamed = triton.InferInput("data", [1], "BYTES")
    unnamed.set_data_from_numpy(np.array([pictures.red], np.object_))
    grey = pixels_input(np.zeros((1, 4, 4, 1), np.uint8))
    cases: dict[str, tuple[Any, dict[str, Any], str, str]] = {
        "shared memory": (shared, {}, "UNIMPLEMENTED", "shared memory"),
        "answer in shared memory": (red, {"outputs": [answer_in_shared]}, "UNIMPLEMENTED", "shared memory"),
        "classes": (red, {"outputs": [output("scores", class_count=2)]}, "UNIMPLEMENTED", "classification"),
        "sequence": (red, {"sequence_id": 7, "sequence_start": True}, "UNIMPLEMENTED", "sequences"),
        "unknown parameter": (red, {"parameters": {"colour": 1}}, "INVALID_ARGUMENT", "'colour'"),
        "wrong type": (red, {"parameters": {"score_threshold": "high"}}, "INVALID_ARGUMENT", "string_param"),
        "bool is no number": (red, {"parameters": {"max_detections": True}}, "INVALID_ARGUMENT", "bool_param"),
        "threshold": (red, {"parameters": {"score_threshold": 1.5}}, "INVALID_ARGUMENT", "between 0 and 1"),
        "not a number": (red, {"parameters": {"min_accuracy": float("nan")}}, "INVALID_ARGUMENT", "between 0 and 1"),
        "detections": (red, {"parameters": {"max_detections": 0}}, "INVALID_ARGUMENT", "between 1 and"),
        "tier": (red, {"parameters": {"latency_tier": "warp"}}, "INVALID_ARGUMENT", "realtime, balanced, accurate"),
        "timeout": (red, {"timeout": -1}, "INVALID_ARGUMENT", "0 or more"),
        "profile and tier": (
            red,
            {"model": "colours/quick", "parameters": {"latency_tier": "realtime"}},
            "INVALID_ARGUMENT",
            "at most one",
        ),
        "two profiles": (
            red,
            {"model": "colours/quick", "parameters": {"profile": "accurate"}},
            "INVALID_ARGUMENT",
            "already names",
        ),
        "model": (red, {"model": "nothing"}, "NOT_FOUND", "'nothing'"),
        "profile": (red, {"model": "colours/nothing"}, "NOT_FOUND", "'nothing'"),
        "version": (red, {"model_version": "4"}, "NOT_FOUND", "version 3"),
        "output": (red, {"outputs": [output("masks")]}, "INVALID_ARGUMENT", "label_names"),
        "output twice": (red, {"outputs": [output("boxes"), output("boxes")]}, "INVALID_ARGUMENT", "twice"),
        "datatype": (wrong_type, {}, "INVALID_ARGUMENT", "must be BYTES"),
        "input": (unnamed, {}, "INVALID_ARGUMENT", "images or pixels"),
        "both inputs": ([red, grey], {}, "INVALID_ARGUMENT", "there must be one"),
        "no input": ([], {}, "INVALID_ARGUMENT", "there must be one"),
        "shape": (grey, {}, "INVALID_ARGUMENT", "[-1, -1, -1, 3]"),
        "no images": (pixels_input(np.zeros((0, 4, 4, 3), np.uint8)), {}, "INVALID_ARGUMENT", "0 images"),
        "no pixels": (pixels_input(np.zeros((1, 0, 4, 3), np.uint8)), {}, "INVALID_ARGUMENT", "[-1, -1, -1, 3]"),
        "too many images": (files_input([pictures.red] * 65), {}, "INVALID_ARGUMENT", "1 to 64"),
        "too many pixels": (pixels_input(np.zeros((1, 300, 300, 3), np.uint8)), {}, "INVALID_ARGUMENT", "300 x 300"),
        "broken image": (files_input([pictures.red, b"GIF"]), {}, "INVALID_ARGUMENT", "image 1: "),
        "empty image": (files_input([pictures.red, b""]), {}, "INVALID_ARGUMENT", "image 1: the image is empty"),
        "long id": (red, {"request_id": "x" * 257}, "INVALID_ARGUMENT", "256"),
    }
    outcomes: dict[str, tuple[str, str]] = {}
    async with serve(max_pixels=80_000) as server:
        for name, (inputs, options, _, _) in cases.items():
            outcomes[name] = await call(server, refusal, inputs, **options)
        assert len((await server.detect(pictures.red)).detections) == 4
    assert {name: code for name, (code, _) in outcomes.items()} == {name: case[2] for name, case in cases.items()}
    for name, (_, message) in outcomes.items():
        assert cases[name][3] in message, name


async def test_what_triton_tools_read(serve: Serve, repository: Path, new_profile: Callable[..., None]) -> None:
    new_profile(repository, "broken", ap=0.9, model=b"no network")

    def read(client: Any) -> dict[str, Any]:
        return {
            "server": client.get_server_metadata(as_json=True),
            "metadata": client.get_model_metadata("colours", as_json=True),
            "config": client.get_model_config("colours/quick", as_json=True)["config"],
            "index": client.get_model_repository_index(as_json=True)["models"],
            "ready": [
                client.is_model_ready(name) for name in ("colours", "colours/quick", "colours/broken", "nothing")
            ],
            "versions": [client.is_model_ready("colours", version) for version in ("3", "2")],
            "alive": (client.is_server_live(), client.is_server_ready()),
        }

    async with serve() as server:
        seen = await call(server, read)
    assert seen["server"]["name"] == "damoserve"
    assert "statistics" in seen["server"]["extensions"]
    assert "model_repository" not in seen["server"]["extensions"]
    assert seen["metadata"]["versions"] == ["3"]
    assert [(tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in seen["metadata"]["inputs"]] == [
        ("images", "BYTES", ["-1", "1"]),
        ("pixels", "UINT8", ["-1", "-1", "-1", "3"]),
    ]
    assert [tensor["name"] for tensor in seen["metadata"]["outputs"]] == [
        *("count", "boxes", "scores", "labels", "label_names", "image_size")
    ]
    assert seen["config"]["name"] == "colours/quick"
    assert seen["config"]["max_batch_size"] == 64
    assert "dynamic_batching" in seen["config"]
    assert all(tensor["optional"] for tensor in seen["config"]["input"])
    assert {entry["name"]: (entry["state"], bool(entry.get("reason"))) for entry in seen["index"]} == {
        "colours": ("READY", False),
        "colours/accurate": ("READY", False),
        "colours/quick": ("READY", False),
        "colours/broken": ("UNAVAILABLE", True),
    }
    assert seen["ready"] == [True, True, False, False]
    assert seen["versions"] == [True, False]
    assert seen["alive"] == (True, True)


async def test_statistics(serve: Serve, pictures: Pictures) -> None:
    def statistics(client: Any, name: str = "") -> dict[str, Any]:
        stats = client.get_inference_statistics(name).model_stats
        return {one.name: one for one in stats}

    async with serve() as server:
        await call(server, infer, files_input([pictures.red] * 3), parameters={"profile": "quick"})
        await call(server, infer, files_input([pictures.red]), model="colours/quick")
        await call(server, refusal, files_input([b"GIF"]), parameters={"profile": "quick"})
        every, quick = await call(server, statistics), await call(server, statistics, "colours/quick")
    assert every.keys() == {"colours", "colours/accurate", "colours/quick"}
    assert quick["colours/quick"] == every["colours/quick"]
    for one in (every["colours"], every["colours/quick"]):
        stages = one.inference_stats
        assert (one.version, one.inference_count, stages.success.count, stages.fail.count) == ("3", 4, 2, 1)
        assert stages.queue.count == stages.compute_input.count == stages.compute_infer.count == 2
        assert stages.success.ns >= stages.compute_infer.ns > 0
        assert 2 <= one.execution_count <= 4
        assert sum(batch.compute_infer.count * batch.batch_size for batch in one.batch_stats) == 4
        assert one.last_inference > 1.7e12
    assert every["colours/accurate"].inference_count == 0


async def test_what_is_not_offered_says_so(serve: Serve) -> None:
    def refused(method: Callable[..., object], *args: object, **options: object) -> tuple[str, str]:
        with pytest.raises(InferenceServerException) as caught:
            method(*args, **options)
        return caught.value.status(), caught.value.message()

    def attempts(client: Any) -> list[tuple[str, str]]:
        return [
            refused(client.get_system_shared_memory_status),
            refused(client.register_system_shared_memory, "name", "/key", 10),
            refused(client.unregister_cuda_shared_memory),
            refused(client.update_trace_settings, settings={"trace_level": ["TIMESTAMPS"]}),
            refused(client.update_log_settings, {"log_info": False}),
            refused(client.load_model, "colours"),
            refused(client.unload_model, "colours"),
        ]

    async with serve() as server:
        outcomes = await call(server, attempts)
        metrics = await server.metrics()
        counted = metrics.sum("damoserve_refused_total", reason="NOT_OFFERED")
    assert {code for code, _ in outcomes} == {"StatusCode.UNIMPLEMENTED"}
    assert [message.split(" ")[0] for _, message in outcomes] == ["shared"] * 3 + ["traces", "the", "models", "models"]
    assert counted == len(outcomes)


async def test_a_server_that_loads_is_alive_but_not_ready(application: MakeApplication) -> None:
    def state(client: Any) -> tuple[bool, bool, bool]:
        return client.is_server_live(), client.is_server_ready(), client.is_model_ready("colours")

    server = application()
    async with listening(server) as connected:
        loading = await call(connected, state)
        await server.load()
        loaded = await call(connected, state)
    assert loading == (True, False, False)
    assert loaded == (True, True, True)


async def test_a_server_that_drains_is_no_longer_ready(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    async with serve(valve.load) as server:
        valve.shut()
        held = asyncio.ensure_future(server.detect(pictures.red))
        await valve.entered()
        stopping = asyncio.ensure_future(server.application.stop())
        ready = True
        async with asyncio.timeout(TIMEOUT):
            while ready:
                ready = await call(server, lambda client: client.is_server_ready())
        code, _ = await call(server, refusal, files_input([pictures.red]))
        valve.open()
        await held
        await stopping
    assert code == "UNAVAILABLE"


async def test_the_service_can_be_switched_off(serve: Serve, pictures: Pictures) -> None:
    async with serve(kserve=False) as server:
        result = await call(server, refusal, files_input([pictures.red]))
    assert result[0] == "UNIMPLEMENTED"


def messages(file: FileDescriptor) -> Iterator[tuple[str, Descriptor]]:
    waiting = list(file.message_types_by_name.values())
    while waiting:
        message = waiting.pop()
        waiting.extend(message.nested_types)
        yield message.full_name.removeprefix(f"{file.package}."), message


def kinds(message: Descriptor) -> Iterator[tuple[str, int, int, bool, str | None]]:
    """Every field of a message with all that decides about its bytes."""
    for field in message.fields:
        nested = field.message_type or field.enum_type
        name = nested.full_name.removeprefix(f"{message.file.package}.") if nested else None
        yield field.name, field.number, field.type, field.is_repeated, name


def test_our_messages_are_on_the_wire_what_tritons_are() -> None:
    theirs = dict(messages(triton_pb.DESCRIPTOR)) | dict(messages(triton_config_pb.DESCRIPTOR))
    ours = dict(messages(inference_pb2.DESCRIPTOR))
    assert len(ours) > 30
    for name, message in ours.items():
        missing = set(kinds(message)) - set(kinds(theirs[name]))
        assert not missing, name
    values = {value.name: value.number for value in triton_config_pb.DESCRIPTOR.enum_types_by_name["DataType"].values}
    assert dict(inference_pb2.DataType.items()) == values
