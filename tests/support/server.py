"""A real server in this process, and what a test asks it."""

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from prometheus_client.parser import text_string_to_metric_families

from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_server.app import Application
from damoserve_server.configuration.settings import Settings
from damoserve_server.engines.onnxruntime import OnnxRuntimeEngine
from damoserve_server.telemetry.spans import Tracer
from tests.support.timeouts import TIMEOUT


@dataclass
class Failure:
    """What a failed call brought."""

    code: grpc.StatusCode
    message: str
    status: status_pb2.Status | None
    metadata: dict[str, str | bytes]

    @property
    def reason(self) -> str | None:
        info = self.detail(error_details_pb2.ErrorInfo)
        assert info is None or info.domain == "damoserve"
        return None if info is None else info.reason

    def detail(self, kind: type[Any]) -> Any:
        for packed in self.status.details if self.status is not None else ():
            if packed.Is(kind.DESCRIPTOR):
                detail = kind()
                packed.Unpack(detail)
                return detail
        return None


@dataclass
class ServerClient:
    """Talks to the server under test."""

    application: Application
    channel: grpc.aio.Channel

    def detect(self, image: bytes, timeout: float | None = TIMEOUT, **fields: Any) -> Any:
        """A call; awaiting it gives the response."""
        request = pb.DetectRequest(image=pb.Image(content=image), **fields)
        return pb_grpc.DetectionServiceStub(self.channel).Detect(request, timeout=timeout)

    @property
    def profiles(self) -> Any:
        return pb_grpc.ProfileServiceStub(self.channel)

    def learn(self, seconds: float) -> None:
        """From now on the server believes that every batch, whatever its size, takes so long."""
        for profile in self.application._detector.result().catalogue.active():
            for size in range(1, self.application._settings.max_batch_size + 1):
                profile.latency.observe(seconds, size)

    async def failure(self, call: Any) -> Failure:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        error = caught.value
        return Failure(
            error.code(), error.details() or "", rpc_status.from_call(error), dict(error.trailing_metadata())
        )

    async def health(self, service: str = "") -> str:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await health_pb2_grpc.HealthStub(self.channel).Check(request, timeout=TIMEOUT)
        name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        return name

    async def metrics(self) -> "Samples":
        url = f"http://127.0.0.1:{self.application.metrics_port}/metrics"
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=TIMEOUT).read().decode())
        return Samples(text)

    async def until(self, condition: Callable[["Samples"], bool]) -> None:
        """Returns when the server's metrics meet the condition."""
        async with asyncio.timeout(TIMEOUT):
            while not condition(await self.metrics()):
                pass


class Samples:
    """The metrics at one moment."""

    def __init__(self, text: str) -> None:
        self._families = list(text_string_to_metric_families(text))
        self._samples = [sample for family in self._families for sample in family.samples]

    def families(self) -> set[tuple[str, str, frozenset[str]]]:
        """The name, the type and the labels of each that has a series."""
        return {
            (
                f"{family.name}_total" if family.type == "counter" else family.name,
                family.type,
                frozenset(family.samples[0].labels) - {"le"},
            )
            for family in self._families
            if family.samples
        }

    def series(self) -> set[tuple[str, str]]:
        return {(sample.name, str(sample.labels)) for sample in self._samples}

    def sum(self, name: str, **labels: str) -> float:
        """Over all series with these labels. There must be one."""
        found = [s.value for s in self._samples if s.name == name and labels.items() <= s.labels.items()]
        assert found, f"no series {name} {labels}"
        return sum(found)


@asynccontextmanager
async def connected(application: Application) -> AsyncIterator[ServerClient]:
    """Connects a client to an application that listens."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{application.port}") as channel:
        yield ServerClient(application, channel)


@asynccontextmanager
async def listening(application: Application) -> AsyncIterator[ServerClient]:
    """Connects a client to a server that listens, and loads nothing until the test calls `load`."""
    await application.listen()
    try:
        async with connected(application) as client:
            yield client
    finally:
        await application.stop()


Serve = Callable[..., AbstractAsyncContextManager[ServerClient]]
"""`async with serve(max_queue=2) as client`: a server with these settings, and a client of it."""
MakeApplication = Callable[..., Application]
"""Makes an application that is not started yet, with these settings."""


def make_application(
    root: Path, load_engine: Any = OnnxRuntimeEngine, tracer: Tracer | None = None, **settings: Any
) -> Application:
    defaults: dict[str, Any] = {"repository": root, "port": 0, "metrics_port": 0, "workers": 1}
    return Application(Settings(**(defaults | settings)), load_engine, tracer=tracer)
