"""Engines that a test holds up, and lets go on."""

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

from damoserve_profiles.manifest import Manifest
from damoserve_server.engines.engine import Engine, EngineOptions, Outputs
from damoserve_server.engines.onnxruntime import OnnxRuntimeEngine
from tests.support.timeouts import TIMEOUT


class Valve:
    """Holds engines up: while it is shut, every `run` waits inside. `sizes` has the batch of each run since `shut`."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self._entered = threading.Event()
        self.sizes: list[int] = []
        self.fault: Exception | None = None
        self.open()

    def open(self) -> None:
        self._opened.set()

    def shut(self) -> None:
        self.sizes.clear()
        self._entered.clear()
        self._opened.clear()

    async def entered(self) -> None:
        """Returns when a run waits inside."""
        assert await asyncio.to_thread(self._entered.wait, TIMEOUT)

    def load(self, model: bytes, manifest: Manifest, options: EngineOptions) -> Engine:
        return ValvedEngine(OnnxRuntimeEngine(model, manifest, options), self)

    def pass_through(self, size: int) -> None:
        self.sizes.append(size)
        self._entered.set()
        assert self._opened.wait(TIMEOUT)
        if self.fault is not None:
            raise self.fault


@dataclass
class ValvedEngine:
    engine: Engine
    valve: Valve

    def run(self, images: Any) -> Outputs:
        self.valve.pass_through(len(images))
        return self.engine.run(images)
