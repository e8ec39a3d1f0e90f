"""Server reflection: what a server speaks, for tools that have no .proto."""

from __future__ import annotations  # gRPC's server is generic for type checkers only

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

if TYPE_CHECKING:
    import grpc
    from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor

OTHER_FILES = (reflection_pb2.DESCRIPTOR, error_details_pb2.DESCRIPTOR)
"""Reflection itself, and the details of errors, which no file of a service names."""


def add_to_server(services: Sequence[ServiceDescriptor], server: grpc.aio.Server) -> None:
    """The services may come from different pools, as long as no two files or messages have the same name."""
    names = [*(service.full_name for service in services), reflection.SERVICE_NAME]
    pool = _pool_of([*(service.file for service in services), *OTHER_FILES])
    reflection.enable_server_reflection(names, server, pool)


def _pool_of(files: Iterable[FileDescriptor]) -> DescriptorPool:
    """One pool of the files and all that they import: the reflection service answers from one."""
    pool = DescriptorPool()
    added: set[str] = set()

    def add(file: FileDescriptor) -> None:
        if file.name not in added:
            added.add(file.name)
            for imported in file.dependencies:
                add(imported)
            pool.AddSerializedFile(file.serialized_pb)

    for file in files:
        add(file)
    return pool
