"""The four types of methods that gRPC has, by whether requests and answers are streams."""

from collections.abc import Callable
from typing import Any

import grpc

METHOD_TYPES = {(False, False): "unary", (False, True): "server_stream", (True, True): "bidi_stream"}
"""The label `grpc_type` of a method, by whether its requests and its answers are streams, as in go-grpc-middleware."""

HANDLER_MAKERS: dict[tuple[bool, bool], tuple[str, Callable[..., Any]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
"""The attribute of a handler that holds its behaviour, and the function that makes such a handler, by the same."""
