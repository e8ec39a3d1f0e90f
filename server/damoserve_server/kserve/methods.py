"""Registers the service under the protocol's own name; our stubs have another, so as to clash with nobody's."""

from __future__ import annotations  # gRPC's classes are generic for type checkers only

from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from damoserve.kserve.v2 import inference_pb2 as pb
from damoserve_server.errors import NotOffered
from damoserve_server.kserve.descriptor import SERVICE
from damoserve_server.kserve.service import InferenceService

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]

METHODS = pb.DESCRIPTOR.services_by_name[SERVICE.name].methods

SHARED_MEMORY = "shared memory is not offered: send the tensors in the request"
NOT_OFFERED = {
    **{f"SystemSharedMemory{action}": SHARED_MEMORY for action in ("Status", "Register", "Unregister")},
    **{f"CudaSharedMemory{action}": SHARED_MEMORY for action in ("Status", "Register", "Unregister")},
}
"""Methods of the protocol that are refused, and why. Reflection does not list them."""


def add_to_server(service: InferenceService, server: grpc.aio.Server) -> None:
    handlers = {method.name: _handler(service, method) for method in METHODS}
    handlers |= {name: _refusal(why) for name, why in NOT_OFFERED.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))


def _handler(service: InferenceService, method: MethodDescriptor) -> Handler:
    make = grpc.stream_stream_rpc_method_handler if method.client_streaming else grpc.unary_unary_rpc_method_handler
    return make(
        getattr(service, method.name),
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


def _refusal(why: str) -> Handler:
    async def refuse(request: bytes, context: object) -> NoReturn:
        raise NotOffered(why)

    return grpc.unary_unary_rpc_method_handler(refuse)
