"""The service as the protocol names it, for tools that ask the server what it speaks.

Our stubs have a package of our own, so as to clash with nobody's; so the description of their file is copied under the
protocol's package, into a pool of its own.
"""

from collections.abc import Iterable

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

from damoserve.kserve.v2 import inference_pb2 as pb

PACKAGE = "inference"
FILE = "inference/damoserve.proto"
"""Unlike the names of Triton's and KServe's own files, which are larger: a tool may hold both."""


def _described() -> ServiceDescriptor:
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
    """Types are named from the root, with a dot before the package."""
    return f".{PACKAGE}.{type_name.removeprefix(f'.{pb.DESCRIPTOR.package}.')}"


SERVICE = _described()
