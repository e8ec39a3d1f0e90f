"""Server reflection: describes the services of a server to tools that have no .proto."""

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
"""Files that are described besides: that of reflection itself, and the details of errors, which no service names."""


def add_to_server(services: Sequence[ServiceDescriptor], server: grpc.aio.Server) -> None:
    """Adds reflection of the services, whose descriptors may come from different pools.

    No two of their files or messages may have the same name.
    """
    names = [*(service.full_name for service in services), reflection.SERVICE_NAME]
    pool = _make_pool([*(service.file for service in services), *OTHER_FILES])
    reflection.enable_server_reflection(names, server, pool)


def _make_pool(files: Iterable[FileDescriptor]) -> DescriptorPool:
    """Returns one pool of the files and all that they import: the reflection service answers from one."""
    pool = DescriptorPool()
    added: set[str] = set()

    def add_with_imports(file: FileDescriptor) -> None:
        if file.name not in added:
            added.add(file.name)
            for imported in file.dependencies:
                add_with_imports(imported)
            pool.AddSerializedFile(file.serialized_pb)

    for file in files:
        add_with_imports(file)
    return pool
