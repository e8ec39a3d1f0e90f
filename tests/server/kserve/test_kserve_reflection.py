"""The KServe v2 service as a tool without its .proto sees it: by reflection alone."""

import asyncio
import base64
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from damoserve.kserve.v2 import inference_pb2
from tests.support.pictures import Pictures
from tests.support.server import Serve, ServerClient

TIMEOUT = 20.0
SERVICE = "inference.GRPCInferenceService"
T = TypeVar("T")


class Tool:
    """Knows nothing of the service but what the server tells."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self.pool = DescriptorPool(self.database)

    def call(self, service: str, name: str, /, **fields: Any) -> dict[str, Any]:
        method = self.pool.FindServiceByName(service).FindMethodByName(name)
        request, answer = (GetMessageClass(kind) for kind in (method.input_type, method.output_type))
        call = self.channel.unary_unary(
            f"/{service}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=answer.FromString,
        )
        return MessageToDict(call(ParseDict(fields, request()), timeout=TIMEOUT), preserving_proto_field_name=True)


async def explore(server: ServerClient, work: Callable[[Tool], T]) -> T:
    """Runs `work(tool)` beside the server."""

    def run() -> T:
        with grpc.insecure_channel(f"127.0.0.1:{server.application.port}") as channel:
            return work(Tool(channel))

    return await asyncio.to_thread(run)


def ask(serve: Serve, work: Callable[[Tool], T], **settings: Any) -> T:
    async def scenario() -> T:
        async with serve(**settings) as server:
            return await explore(server, work)

    return asyncio.run(scenario())


def test_one_service_describes_ours_and_the_protocols(serve: Serve) -> None:
    def work(tool: Tool) -> dict[str, list[str]]:
        names = tool.database.get_services()
        return {name: sorted(tool.pool.FindServiceByName(name).methods_by_name) for name in names}

    found = ask(serve, work)
    assert set(found) == {
        "damoserve.v1.DetectionService",
        "damoserve.v1.ProfileService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        SERVICE,
    }
    ours = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert found[SERVICE] == sorted(ours.methods_by_name)


def test_a_service_that_is_switched_off_is_not_described(serve: Serve) -> None:
    def work(tool: Tool) -> list[str]:
        with pytest.raises(KeyError):
            tool.pool.FindServiceByName(SERVICE)
        return list(tool.database.get_services())

    assert SERVICE not in ask(serve, work, kserve=False)


def test_nothing_is_described_where_reflection_is_off(serve: Serve) -> None:
    def work(tool: Tool) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as caught:
            tool.database.get_services()
        return caught.value.code()

    assert ask(serve, work, reflection=False) == grpc.StatusCode.UNIMPLEMENTED


def named_types(message: Descriptor) -> Iterator[str]:
    for field in message.fields:
        yield from (kind.full_name for kind in (field.message_type, field.enum_type) if kind is not None)
    for nested in message.nested_types:
        yield from named_types(nested)


def test_every_message_is_described_under_the_protocols_package(serve: Serve) -> None:
    def work(tool: Tool) -> tuple[str, set[str], set[str]]:
        file = tool.pool.FindFileContainingSymbol(SERVICE)
        messages = list(file.message_types_by_name.values())
        return file.package, {message.name for message in messages}, {kind for m in messages for kind in named_types(m)}

    package, messages, kinds = ask(serve, work)
    assert package == "inference"
    assert messages == set(inference_pb2.DESCRIPTOR.message_types_by_name)
    assert "inference.DataType" in kinds
    assert all(kind.startswith("inference.") for kind in kinds)


def test_the_service_is_called_by_what_it_told(serve: Serve, pictures: Pictures) -> None:
    contents = {"bytes_contents": [base64.b64encode(pictures.red).decode()]}
    image = {"name": "images", "datatype": "BYTES", "shape": [1], "contents": contents}

    def work(tool: Tool) -> tuple[dict[str, Any], ...]:
        asked = {"latency_tier": {"string_param": "realtime"}}
        return (
            tool.call(SERVICE, "ServerReady"),
            tool.call(SERVICE, "ModelMetadata", name="colours"),
            tool.call(SERVICE, "ModelInfer", model_name="colours", inputs=[image], parameters=asked),
            tool.call("damoserve.v1.ProfileService", "ListProfiles"),
        )

    ready, metadata, answer, profiles = ask(serve, work)
    assert ready == {"ready": True}
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["images", "pixels"]
    assert answer["outputs"][0]["contents"] == {"int_contents": [4]}
    assert {profile["model"] for profile in profiles["profiles"]} == {"colours"}


def test_the_details_of_errors_are_described_too(serve: Serve) -> None:
    """Tools show them only if they find their messages."""
    names = ("google.rpc.ErrorInfo", "google.rpc.BadRequest", "google.rpc.RetryInfo")

    def work(tool: Tool) -> list[str]:
        return [tool.pool.FindMessageTypeByName(name).full_name for name in names]

    assert ask(serve, work) == list(names)
