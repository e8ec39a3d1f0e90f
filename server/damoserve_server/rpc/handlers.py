"""The four types of methods that gRPC has."""

from collections.abc import Callable
from typing import Any

import grpc

TYPES = {(False, False): "unary", (False, True): "server_stream", (True, True): "bidi_stream"}
"""By whether requests and answers are streams; the names are go-grpc-middleware's."""

MAKERS: dict[tuple[bool, bool], tuple[str, Callable[..., Any]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
"""What holds a handler's behaviour, and what makes such a handler, by the same."""
