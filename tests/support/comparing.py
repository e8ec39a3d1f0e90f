"""What the tests of the fidelity monitor share."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles.manifest import Manifest
from damoserve_server.engines.engine import EngineError, EngineLoader, EngineOptions, Outputs
from damoserve_server.engines.onnxruntime import OnnxRuntimeEngine
from tests.support.server import Samples, Serve, ServerClient
from tests.support.timeouts import TIMEOUT

THREAD = "fidelity"
ALL = {"fidelity": {"share": 1}}
QUICK = {"model": "colours", "profile": "quick"}
Damage = Callable[[NDArray[np.float32], NDArray[np.float32]], Outputs]
T = TypeVar("T")


def results(samples: Samples, **labels: str) -> dict[str, float]:
    names = ("compared", "dropped_busy", "dropped_unloaded", "not_comparable", "failed")
    labels = QUICK | labels
    return {
        name: count
        for name in names
        if (count := samples.sum("damoserve_fidelity_images_total", **labels, result=name))
    }


def boxes(samples: Samples, **labels: str) -> dict[str, float]:
    return {
        name: samples.sum("damoserve_fidelity_boxes_total", **(QUICK | labels), result=name)
        for name in ("matched", "missing", "extra")
    }


def agreement(samples: Samples) -> float:
    found = boxes(samples)
    return 2 * found["matched"] / (2 * found["matched"] + found["missing"] + found["extra"])


def compared(count: int) -> Callable[[Samples], bool]:
    return lambda samples: results(samples).get("compared") == count


class Engines:
    """Loads engines and watches those that the monitor runs.

    `damage` is done to the outputs of the profile `quick`. While `shut`, the runs of the monitor wait; they end early
    when they are interrupted, where `interruptible`.
    """

    def __init__(self, *, interruptible: bool = True, damage: Damage = lambda scores, boxes: (scores, boxes)) -> None:
        self.interruptible = interruptible
        self.damage = damage
        self.runs: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.opened.set()
        self.fault: Exception | None = None

    def load(self, model: bytes, manifest: Manifest, options: EngineOptions) -> "WatchedEngine":
        kind = InterruptibleEngine if self.interruptible else WatchedEngine
        return kind(OnnxRuntimeEngine(model, manifest, options), manifest.profile, self, threading.Event())


@dataclass(eq=False)
class WatchedEngine:
    engine: OnnxRuntimeEngine
    profile: str
    engines: Engines
    interrupted: threading.Event

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        if threading.current_thread().name == THREAD:
            self.watched()
        outputs = self.engine.run(images)
        return self.engines.damage(*outputs) if self.profile == "quick" else outputs

    def watched(self) -> None:
        engines = self.engines
        engines.runs[self.profile] += 1
        engines.entered.set()
        until = time.monotonic() + TIMEOUT
        while not (engines.opened.is_set() or self.interrupted.is_set()):
            assert time.monotonic() < until
            self.interrupted.wait(0.001)
        engines.ends["interrupted" if self.interrupted.is_set() else "ran"] += 1
        if self.interrupted.is_set():
            raise EngineError("interrupted")
        if engines.fault is not None:
            raise engines.fault


class InterruptibleEngine(WatchedEngine):
    interruptible = True

    def interrupt(self) -> None:
        self.interrupted.set()

    def resume(self) -> None:
        self.interrupted.clear()


async def entered(engines: Engines) -> None:
    """Returns when the monitor is in a run."""
    assert await asyncio.to_thread(engines.entered.wait, TIMEOUT)


def monitor_of(client: ServerClient) -> Any:
    return client.application._detector.result().fidelity


def served(
    serve: Serve,
    scenario: Callable[[ServerClient], Awaitable[T]],
    load_engine: EngineLoader = OnnxRuntimeEngine,
    **settings: Any,
) -> T:
    """Runs a scenario with a client of a server that compares every answer."""

    async def main() -> T:
        async with serve(load_engine, **(ALL | settings)) as client:
            return await scenario(client)

    return asyncio.run(main())
