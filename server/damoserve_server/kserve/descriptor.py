"""Describes the service under the name that the protocol gives it, for tools that ask by reflection.

Our stubs have a package of our own, so as to clash with nobody's. So the descriptor of their file is copied, with the
protocol's package for ours, into a pool of its own.
"""

from collections.abc import Iterable

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

from damoserve.kserve.v2 import inference_pb2 as pb

PACKAGE = "inference"
FILE = "inference/damoserve.proto"
"""The name of the copied file, unlike those of Triton's and KServe's own, larger ones: a tool may hold both."""


def _copy_service() -> ServiceDescriptor:
    file = FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = FILE, PACKAGE
    _rename_fields(file.message_type)
    for service in file.service:
        for method in service.method:
            method.input_type = _renamed(method.input_type)
            method.output_type = _renamed(method.output_type)
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName(f"{PACKAGE}.GRPCInferenceService")


def _rename_fields(messages: Iterable[DescriptorProto]) -> None:
    for message in messages:
        for field in message.field:
            if field.HasField("type_name"):  # scalars have none
                field.type_name = _renamed(field.type_name)
        _rename_fields(message.nested_type)


def _renamed(type_name: str) -> str:
    """Returns the name with the protocol's package; as in all descriptors, it begins with a dot."""
    return f".{PACKAGE}.{type_name.removeprefix(f'.{pb.DESCRIPTOR.package}.')}"


SERVICE = _copy_service()
"""`inference.GRPCInferenceService`, with the methods that are offered."""
