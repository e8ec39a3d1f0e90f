"""When the fidelity monitor may run, what becomes of what waits for it, and that it keeps nothing."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from damoserve_profiles.manifest import Manifest
from damoserve_profiles.repository import Repository
from damoserve_server.engines.engine import EngineError, EngineOptions, Interruptible, Outputs
from damoserve_server.engines.onnxruntime import OnnxRuntimeEngine
from damoserve_server.models.catalogue import ActiveProfile
from damoserve_server.scheduling.latency import WINDOW
from tests.support.comparing import ALL, Engines, compared, entered, monitor_of, results, served
from tests.support.pictures import Pictures
from tests.support.server import Samples, Serve, ServerClient
from tests.support.timeouts import TIMEOUT
from tests.support.valve import Valve


def test_a_full_store_drops_and_counts(serve: Serve, pictures: Pictures) -> None:
    shut = Engines()
    shut.opened.clear()

    async def scenario(client: ServerClient) -> tuple[Samples, Samples]:
        await client.detect(pictures.red, profile="quick")
        await entered(shut)
        for _ in range(5):
            await client.detect(pictures.red, profile="quick")
        full = await client.metrics()
        shut.opened.set()
        await client.until(compared(3))
        return full, await client.metrics()

    full, after = served(serve, scenario, shut.load, fidelity={"share": 1, "kept_images": 3})
    assert results(full) == {"dropped_busy": 3}
    assert results(after) == {"compared": 3, "dropped_busy": 3}


def counted(count: int) -> Callable[[Samples], bool]:
    return lambda samples: sum(results(samples).values()) == count


@pytest.mark.parametrize("end", ["compared", "failed"])
def test_a_sample_gives_its_room_back_when_it_ends(serve: Serve, pictures: Pictures, end: str) -> None:
    engines = Engines()
    engines.fault = EngineError("out of memory") if end == "failed" else None

    async def scenario(client: ServerClient) -> Samples:
        for count in (1, 2, 3):
            await client.detect(pictures.red, profile="quick")
            await client.until(counted(count))
        return await client.metrics()

    after = served(serve, scenario, engines.load, fidelity={"share": 1, "kept_images": 1})
    assert results(after) == {end: 3}


def test_nothing_is_run_while_requests_are_there(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    watched = Engines()

    def load(model: bytes, manifest: Manifest, options: EngineOptions) -> Any:
        engine: Any = watched.load(model, manifest, options)
        usual: Callable[[NDArray[np.uint8]], Outputs] = engine.run

        def run(images: NDArray[np.uint8]) -> Outputs:
            if threading.current_thread().name.startswith("worker"):
                valve.pass_through(len(images))
            return usual(images)

        engine.run = run
        return engine

    async def scenario(client: ServerClient) -> bool:
        await client.detect(pictures.red, profile="quick")
        valve.shut()
        waiting = [asyncio.ensure_future(client.detect(pictures.red, profile="quick")) for _ in range(3)]
        await valve.entered()
        monitor = monitor_of(client)
        with monitor._changed:
            began = monitor._seconds_to_wait() is not None
        valve.open()
        await asyncio.gather(*waiting)
        await client.until(compared(4))
        return began

    assert not served(serve, scenario, load)
    assert watched.ends["ran"] == 4


def test_an_arrival_interrupts_the_run_and_the_sample_is_tried_again(serve: Serve, pictures: Pictures) -> None:
    shut = Engines()
    shut.opened.clear()

    async def scenario(client: ServerClient) -> None:
        await client.detect(pictures.red, profile="quick")
        await entered(shut)
        await client.detect(pictures.red, profile="accurate")  # answered, though the run is held up
        shut.opened.set()
        await client.until(compared(1))

    served(serve, scenario, shut.load)
    assert shut.ends["interrupted"] >= 1
    assert shut.ends["ran"] == 1


def test_what_cannot_be_interrupted_runs_only_after_a_longer_quiet(serve: Serve, pictures: Pictures) -> None:
    watched = Engines(interruptible=False)

    async def scenario(client: ServerClient) -> None:
        monitor = monitor_of(client)
        reference = client.application._detector.result().catalogue.model("colours").find("accurate")
        assert isinstance(reference, ActiveProfile)
        reference.latency.observe(TIMEOUT)  # a run is believed to take so long: nothing is quiet enough
        await client.detect(pictures.red, profile="quick")
        with monitor._changed:
            assert monitor._seconds_to_wait() > TIMEOUT
        for _ in range(WINDOW):
            reference.latency.observe(0.001)
        await client.detect(pictures.red, profile="quick")
        await client.until(compared(2))

    served(serve, scenario, watched.load)


def test_after_a_run_there_is_a_pause_of_nine_times_its_length(serve: Serve, pictures: Pictures) -> None:
    shut = Engines()
    shut.opened.clear()

    async def scenario(client: ServerClient) -> tuple[float, float]:
        await client.detect(pictures.red, profile="quick")
        await entered(shut)
        began = time.monotonic()
        await client.metrics()
        ended = time.monotonic()
        shut.opened.set()
        await client.until(compared(1))
        return monitor_of(client)._rest_until - ended, ended - began

    pause, ran = served(serve, scenario, shut.load)
    assert pause >= 9 * ran


async def test_stopping_does_not_wait_for_samples(serve: Serve, pictures: Pictures) -> None:
    shut = Engines()
    shut.opened.clear()
    async with serve(shut.load, **ALL) as client:
        for _ in range(4):
            await client.detect(pictures.red, profile="quick")
        await entered(shut)
        thread = monitor_of(client)._thread
        started = time.monotonic()
    alive, seconds = thread.is_alive(), time.monotonic() - started
    assert not alive
    assert seconds < TIMEOUT / 2


async def freed(reference: Any) -> None:
    async with asyncio.timeout(TIMEOUT):
        while reference() is not None:
            gc.collect()
            await asyncio.sleep(0)


@pytest.mark.parametrize("profile", ["quick", "accurate"])
def test_unloading_drops_the_samples_and_frees_the_profile(serve: Serve, pictures: Pictures, profile: str) -> None:
    shut = Engines()
    shut.opened.clear()

    async def scenario(client: ServerClient) -> Samples:
        for _ in range(3):
            await client.detect(pictures.red, profile="quick")
        await entered(shut)
        model = client.application._detector.result().catalogue.model("colours")
        gone = weakref.ref(model.find(profile))
        del model
        lifecycle = client.application._lifecycle
        assert lifecycle is not None
        await lifecycle.unload_profile("colours", profile)
        await freed(gone)
        return await client.metrics()

    assert results(served(serve, scenario, shut.load)) == {"dropped_unloaded": 3}


def test_a_new_version_drops_the_samples_and_frees_the_old_one(
    serve: Serve, repository: Path, new_profile: Callable[..., None], pictures: Pictures
) -> None:
    shut = Engines()
    shut.opened.clear()

    async def scenario(client: ServerClient) -> Samples:
        await client.detect(pictures.red, profile="quick")
        await entered(shut)
        old = [weakref.ref(profile) for profile in client.application._detector.result().catalogue.active()]
        for profile, ap in (("accurate", 0.6), ("quick", 0.4)):
            new_profile(repository, profile, ap, version=4)
        lifecycle = client.application._lifecycle
        assert lifecycle is not None
        await lifecycle.reload("colours")
        for each in old:
            await freed(each)
        shut.opened.set()
        await client.detect(pictures.red, profile="quick")
        await client.until(compared(1))
        return await client.metrics()

    assert results(served(serve, scenario, shut.load)) == {"dropped_unloaded": 1, "compared": 1}


def test_onnx_runtime_can_be_interrupted(pristine: Path) -> None:
    folder = Repository(pristine).folder("colours", 3, "quick")
    engine = OnnxRuntimeEngine(folder.model_path.read_bytes(), folder.read_manifest(), EngineOptions(1))
    assert isinstance(engine, Interruptible)
    assert engine.interruptible
    images = np.zeros((1, 32, 64, 3), np.uint8)
    engine.interrupt()
    with pytest.raises(Exception, match="terminate"):
        engine.run(images)
    engine.resume()
    assert engine.run(images)[0].shape == (1, 4, 3)
