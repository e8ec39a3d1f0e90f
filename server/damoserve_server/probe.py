"""Asks the health service of a server: `python -m damoserve_server.probe [HOST:PORT]` ends with 0 if it serves, else 1.

For a container's health check, which starts it every few seconds: it imports gRPC and nothing else that is large.
"""

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_SECONDS = 3.0


def ask(address: str) -> str:
    """The server's status, `SERVING` if all is well; or why there was no answer."""
    # gRPC obeys `http_proxy` even for this machine, where no proxy can reach.
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return name


def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else f"127.0.0.1:{os.environ.get('DAMOSERVE_PORT', '50051')}"
    status = ask(address)
    print(f"{address}: {status}")
    sys.exit(status != "SERVING")


if __name__ == "__main__":
    main()
