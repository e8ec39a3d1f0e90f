"""Where traces go: to the log, to exemplars, and to a collector that speaks OTLP. And where they cannot."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from pydantic import ValidationError

from damoserve_server.telemetry.settings import TracingSettings
from tests.support.pictures import Pictures
from tests.support.server import Serve
from tests.support.timeouts import TIMEOUT
from tests.support.traces import DETECT, STAGES, Traces, exemplars

pytest.importorskip("opentelemetry.proto", reason="the extra tracing is not installed")

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans
from opentelemetry.trace import format_trace_id


async def test_the_access_log_names_the_trace_of_a_call(
    serve: Serve, pictures: Pictures, caplog: pytest.LogCaptureFixture
) -> None:
    traces = Traces()
    async with serve(tracer=traces.tracer, access_log=True) as client:
        with caplog.at_level(logging.INFO, "damoserve_server.access_log"):
            await client.detect(pictures.red)
    (line,) = [vars(record)["fields"] for record in caplog.records if record.name == "damoserve_server.access_log"]
    assert line["trace_id"] == format_trace_id(traces.only(DETECT).context.trace_id)


async def test_the_histogram_names_the_trace_of_a_request(serve: Serve, pictures: Pictures) -> None:
    traces = Traces()
    async with serve(tracer=traces.tracer) as client:
        await client.detect(pictures.red)
        labels = await exemplars(client)
    assert labels == [{"trace_id": format_trace_id(traces.only(DETECT).context.trace_id)}]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans by OTLP."""

    endpoint: str

    def __init__(self) -> None:
        self.resources: list[ResourceSpans] = []
        self.answers = threading.Event()
        self.answers.set()

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.resources += request.resource_spans
        assert self.answers.wait(TIMEOUT)
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def names(self) -> list[str]:
        scopes = [scope for resource in self.resources for scope in resource.scope_spans]
        return sorted(span.name for scope in scopes for span in scope.spans)


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = grpc.server(ThreadPoolExecutor(1))
    collector = Collector()
    add = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(collector, server)  # type: ignore[no-untyped-call]  # generated without types
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield collector
    collector.answers.set()
    server.stop(None).wait()


async def test_spans_arrive_at_a_collector_before_the_server_has_stopped(
    serve: Serve, pictures: Pictures, collector: Collector
) -> None:
    tracing = {"endpoint": collector.endpoint, "sample_ratio": 1, "service_name": "eyes"}
    async with serve(tracing=tracing) as client:
        await client.detect(pictures.red)
    assert collector.names == sorted([DETECT, "batch", *STAGES])
    attributes = {each.key: each.value.string_value for each in collector.resources[0].resource.attributes}
    assert attributes["service.name"] == "eyes"


async def test_a_collector_that_does_not_answer_keeps_no_server_from_stopping(
    serve: Serve, pictures: Pictures, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenTelemetry alone would wait for 30 s."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    async with (
        asyncio.timeout(TIMEOUT),
        serve(tracing={"endpoint": collector.endpoint, "sample_ratio": 1}) as client,
    ):
        collector.answers.clear()
        await client.detect(pictures.red)
    assert not collector.answers.is_set()


def test_an_endpoint_is_an_address_with_its_scheme() -> None:
    with pytest.raises(ValidationError, match="endpoint"):
        TracingSettings(endpoint="127.0.0.1:4317")


def without_opentelemetry(script: str) -> subprocess.CompletedProcess[str]:
    block = "import sys; sys.modules['opentelemetry'] = None\n"
    environment = {**os.environ, "DAMOSERVE_PORT": "0", "DAMOSERVE_METRICS_PORT": "0"}
    return subprocess.run(
        [sys.executable, "-c", block + script], env=environment, capture_output=True, text=True, check=False
    )


def test_without_the_packages_the_server_serves(repository: Path) -> None:
    script = f"""
import asyncio, signal, os
from damoserve_server.app import serve
from damoserve_server.configuration.settings import Settings
settings = Settings(repository={str(repository)!r}, access_log=True, workers=1)
asyncio.run(serve(settings, lambda line: os.kill(os.getpid(), signal.SIGTERM)))
print("served", [name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = without_opentelemetry(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "served ['opentelemetry']\n"  # the one that is blocked


def test_without_the_packages_an_endpoint_is_an_error_that_says_what_to_install(repository: Path) -> None:
    script = """
import os
os.environ["DAMOSERVE_TRACING__ENDPOINT"] = "http://127.0.0.1:4317"
import typer
from damoserve_server.cli import serve
typer.run(serve)
"""
    done = without_opentelemetry(script)
    assert done.returncode == 1
    assert done.stderr.startswith("damoserve cannot start: DAMOSERVE_TRACING__ENDPOINT: ")
    assert "pip install 'damoserve[tracing]'" in done.stderr
    assert "Traceback" not in done.stderr
