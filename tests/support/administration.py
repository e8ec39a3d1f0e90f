"""What the tests of the admin service share."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc

from damoserve.v1 import admin_pb2_grpc
from damoserve.v1 import detection_pb2 as pb
from damoserve_profiles.manifest import Manifest
from damoserve_server.engines.engine import Engine, EngineLoader, EngineOptions
from damoserve_server.engines.onnxruntime import OnnxRuntimeEngine
from damoserve_server.models.catalogue import ActiveProfile
from tests.support.pictures import Pictures
from tests.support.server import Serve, ServerClient

FRENCH = ("rouge", "vert", "bleu")


@asynccontextmanager
async def administered(
    serve: Serve, load_engine: EngineLoader = OnnxRuntimeEngine, **settings: Any
) -> "AsyncIterator[tuple[ServerClient, admin_pb2_grpc.AdminServiceAsyncStub]]":
    """A server with an admin service: its client, and the admin stub."""
    async with serve(load_engine, admin_port=0, **settings) as client:
        address = f"127.0.0.1:{client.application.admin_port}"
        async with grpc.aio.insecure_channel(address) as channel:
            yield client, admin_pb2_grpc.AdminServiceStub(channel)


def only_version(version: int, load_engine: EngineLoader) -> EngineLoader:
    """A loader that has `load_engine` for one version, and none of its business with the others."""

    def load(model: bytes, manifest: Manifest, options: EngineOptions) -> Engine:
        return (load_engine if manifest.version == version else OnnxRuntimeEngine)(model, manifest, options)

    return load


def active(client: ServerClient, model: str = "colours") -> tuple[ActiveProfile, ...]:
    return client.application._detector.result().catalogue.models[model].active


class Callers:
    """Sixteen callers that never pause, each with a picture of its own, and every answer that they got."""

    COLOURS = ("red", "lime", "blue", "white")

    def __init__(self, client: ServerClient, pictures: Pictures, count: int = 16, **fields: Any) -> None:
        self._client = client
        self._fields = fields
        self._pictures = [pictures.encode(pictures.draw(self.COLOURS[index % 4])) for index in range(count)]
        self._stop = False
        self.answers: list[tuple[str, pb.DetectResponse]] = []
        self.failures: list[grpc.aio.AioRpcError] = []

    async def __aenter__(self) -> "Callers":
        self._tasks = [asyncio.ensure_future(self._call(index)) for index in range(len(self._pictures))]
        await self.more(1)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def more(self, rounds: int = 1) -> None:
        """Returns after so many more answers as there are callers, times `rounds`."""
        wanted = self.ended + rounds * len(self._pictures)
        async with asyncio.timeout(60):
            while self.ended < wanted:
                await asyncio.sleep(0)

    @property
    def ended(self) -> int:
        return len(self.answers) + len(self.failures)

    async def _call(self, index: int) -> None:
        while not self._stop:
            try:
                answer = await self._client.detect(self._pictures[index], timeout=60, **self._fields)
                self.answers.append((self.COLOURS[index % 4], answer))
            except grpc.aio.AioRpcError as error:
                self.failures.append(error)

    def check(self, labels: Mapping[int, tuple[str, ...]]) -> None:
        """Each answer has the colours of its picture, in the words of the version that it says served it."""
        for colour, answer in self.answers:
            names = labels[answer.model_version]
            expected = {"red": names[:1], "lime": names[1:2], "blue": names[2:], "white": names}[colour]
            assert sorted(d.label for d in answer.detections) == sorted(expected * 4)
