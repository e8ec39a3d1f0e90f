"""Asks a server for its health: `python -m damoserve_server.rpc.probe [HOST:PORT]` ends with 0 if it serves, else 1.

A container's health check starts it every few seconds, so it imports gRPC and nothing else that is large.
It speaks TLS where the environment gives the server a certificate, or with `--tls`, and needs no authority for it: it
asks whether the server is well, not who it is. For mutual TLS it takes `--cert` and `--key`.
"""

import argparse
import os
import socket
import ssl
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_SECONDS = 3.0


def check_health(address: str, tls: bool = False, pair: tuple[Path, Path] | None = None) -> str:
    """Returns the server's status, `SERVING` if all is well, or why there was no answer.

    `pair` is the client's certificate and its key, for mutual TLS.
    """
    try:
        with _channel(address, tls, pair) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    except OSError as error:
        return f"UNAVAILABLE: {error}"
    name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return name


def _channel(address: str, tls: bool, pair: tuple[Path, Path] | None) -> grpc.Channel:
    # gRPC obeys `http_proxy` even for this machine, where no proxy can reach.
    options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
    if not tls:
        return grpc.insecure_channel(address, options)
    certificate, name = _served_certificate(address)
    options.append(("grpc.ssl_target_name_override", name))
    chain, key = (path.read_bytes() for path in pair) if pair else (None, None)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(certificate.encode(), key, chain), options)


def _served_certificate(address: str) -> tuple[str, str]:
    """Fetches the certificate that the server shows. Returns it and a name that stands in it. Raises OSError."""
    host, _, port = address.rpartition(":")
    server = (host.strip("[]"), int(port))
    certificate = ssl.get_server_certificate(server, timeout=TIMEOUT_SECONDS)
    # Python tells the names only of a certificate that it trusts: so a second look, trusting this very one.
    context = ssl.create_default_context(cadata=certificate)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    with socket.create_connection(server, TIMEOUT_SECONDS) as raw, context.wrap_socket(raw) as secure:
        names: Any = (secure.getpeercert() or {}).get("subjectAltName", ())
    name = next((name for kind, name in names if kind in ("DNS", "IP Address")), host)
    return certificate, name.replace("*", "any")  # a wildcard fits names, and is none


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m damoserve_server.rpc.probe", description="Asks a server how it is."
    )
    parser.add_argument("address", nargs="?", default=f"127.0.0.1:{os.environ.get('DAMOSERVE_PORT', '50051')}")
    parser.add_argument("--tls", action="store_true", default="DAMOSERVE_TLS__CERTIFICATE" in os.environ)
    parser.add_argument("--cert", type=Path)
    parser.add_argument("--key", type=Path)
    arguments = parser.parse_args()
    if (arguments.cert is None) != (arguments.key is None):
        parser.error("--cert and --key go together")
    pair = arguments.cert and (arguments.cert, arguments.key)
    status = check_health(arguments.address, arguments.tls or pair is not None, pair)
    print(f"{arguments.address}: {status}")
    raise SystemExit(status != "SERVING")


if __name__ == "__main__":
    main()
