"""The probe against real health services."""

import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from damoserve_server.rpc import probe
from tests.support.authority import Authority

Status = health_pb2.HealthCheckResponse


@contextmanager
def server_that_is(status: int, credentials: grpc.ServerCredentials | None = None) -> Iterator[int]:
    """The port of a server whose health service says `status`."""
    servicer = health.HealthServicer()
    servicer.set("", status)
    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = "127.0.0.1:0"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("status", "name", "exit_code"), [(Status.SERVING, "SERVING", 0), (Status.NOT_SERVING, "NOT_SERVING", 1)]
)
def test_exit_code_says_whether_the_server_serves(
    status: int, name: str, exit_code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["probe"])
    with server_that_is(status) as port:
        monkeypatch.setenv("DAMOSERVE_PORT", str(port))
        with pytest.raises(SystemExit) as ended:
            probe.main()
    assert int(ended.value.code or 0) == exit_code
    assert capsys.readouterr().out == f"127.0.0.1:{port}: {name}\n"


def test_address_of_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    with server_that_is(Status.SERVING) as serving, server_that_is(Status.NOT_SERVING) as other:
        monkeypatch.setenv("DAMOSERVE_PORT", str(other))
        monkeypatch.setattr(sys, "argv", ["probe", f"127.0.0.1:{serving}"])
        with pytest.raises(SystemExit) as ended:
            probe.main()
    assert not ended.value.code


def test_says_why_there_is_no_answer() -> None:
    with socket.socket() as taken:  # bound but not listening: nobody else can answer there
        taken.bind(("127.0.0.1", 0))
        assert probe.check_health(f"127.0.0.1:{taken.getsockname()[1]}").startswith("UNAVAILABLE: ")


@pytest.mark.parametrize("name", ["detector.example", "*.example"])
def test_tls_needs_no_authority_and_no_fitting_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Authority().issue(name)
    credentials = grpc.ssl_server_credentials([(pair.key, pair.certificate)])
    with server_that_is(Status.SERVING, credentials) as port:
        assert probe.check_health(f"127.0.0.1:{port}", tls=True) == "SERVING"
        assert probe.check_health(f"127.0.0.1:{port}").startswith("UNAVAILABLE: ")
        monkeypatch.setenv("DAMOSERVE_TLS__CERTIFICATE", "server.crt")
        monkeypatch.setattr(sys, "argv", ["probe", f"127.0.0.1:{port}"])
        with pytest.raises(SystemExit) as ended:
            probe.main()
    assert not ended.value.code


def test_mutual_tls_needs_a_certificate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = Authority()
    pair = authority.issue()
    credentials = grpc.ssl_server_credentials([(pair.key, pair.certificate)], authority.certificate, True)
    mine = authority.issue("probe").write(tmp_path, "probe")
    with server_that_is(Status.SERVING, credentials) as port:
        assert probe.check_health(f"127.0.0.1:{port}", tls=True).startswith("UNAVAILABLE: ")
        options = ["--cert", str(mine["certificate"]), "--key", str(mine["key"])]
        monkeypatch.setattr(sys, "argv", ["probe", f"127.0.0.1:{port}", *options])
        with pytest.raises(SystemExit) as ended:
            probe.main()
    assert not ended.value.code


def test_a_server_without_tls_is_no_answer_to_tls() -> None:
    with server_that_is(Status.SERVING) as port:
        assert probe.check_health(f"127.0.0.1:{port}", tls=True).startswith("UNAVAILABLE: ")
