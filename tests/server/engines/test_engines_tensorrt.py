"""TensorRT's engine on an imitated GPU: what it keeps, shares and gives back. Its answers: `test_engines`."""

import gc
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from damoserve_profiles.recipe import Recipe
from damoserve_profiles.repository import Repository
from damoserve_server.engines.choice import load_engine
from damoserve_server.engines.engine import Engine, EngineError, EngineOptions, GpuOptions, close_engine
from tests.support.imitated_gpu import TensorRt, imitated_gpu
from tests.support.pictures import Pictures
from tests.support.server import Serve

IMAGES = np.full((3, 32, 64, 3), 255, np.uint8)
Load = Callable[..., Any]
"""Loads an engine, of a type that can be imported only while the GPU is imitated."""


@pytest.fixture
def gpu() -> Iterator[TensorRt]:
    with imitated_gpu() as tensorrt:
        yield tensorrt


@pytest.fixture
def load(repository: Path, tmp_path: Path) -> Load:
    """Loads the network of the four quarters: `load(device=1)`, `load(candidates=5)`."""
    for profile in ("accurate", "quick"):
        folder = Repository(repository).folder("colours", 3, profile)
        manifest = folder.read_manifest()
        folder.write(manifest.model_copy(update={"recipe": Recipe(name=profile, target="gpu")}))

    def load(limit: int = 3, device: int = 0, cache: Path | None = tmp_path / "cache", **update: Any) -> Engine:
        options = EngineOptions(limit, engine="tensorrt", gpu=GpuOptions(device, cache))
        manifest = folder.read_manifest().model_copy(update=update)
        return load_engine(folder.model_path.read_bytes(), manifest, options)

    return load


def restart() -> None:
    """As if the process were new: what it has loaded is forgotten."""
    gc.collect()
    import_module("damoserve_server.engines.tensorrt_plan")._plans.clear()


def test_workers_share_what_was_built_and_the_next_process_finds_it(gpu: TensorRt, load: Load, tmp_path: Path) -> None:
    engines = [load(), load()]
    assert engines[0]._plan is engines[1]._plan
    restart()
    assert (load().run(IMAGES)[0] == 1).all()
    assert gpu.builds == 1
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".plan", ".timing"]


def test_another_batch_limit_is_built_anew_with_the_same_timings(gpu: TensorRt, load: Load, tmp_path: Path) -> None:
    load(limit=3)
    load(limit=2)
    assert gpu.builds == 2
    (timing,) = (tmp_path / "cache").glob("*.timing")
    assert timing.read_bytes().endswith(b"!!")


def test_without_a_cache_workers_share_all_the_same(gpu: TensorRt, load: Load) -> None:
    engines = [load(cache=None), load(cache=None)]
    assert gpu.builds == 1
    close_engine(engines[0])
    assert (engines[1].run(IMAGES)[0] == 1).all()


def test_closing_gives_back_what_the_device_has(gpu: TensorRt, load: Load) -> None:
    engine = load()
    before = gpu.cuda.in_use
    close_engine(engine)
    assert gpu.cuda.in_use == 3  # the pinned memory of outputs that may still be in use
    assert before > 3
    with pytest.raises(EngineError):
        engine.run(IMAGES)


def test_forgetting_an_engine_gives_everything_back(gpu: TensorRt, load: Load) -> None:
    engine = load()
    engine.run(IMAGES)
    del engine
    gc.collect()
    assert not gpu.cuda.in_use


def test_outputs_outlive_their_engine(gpu: TensorRt, load: Load) -> None:
    scores = load().run(IMAGES)[0]
    gc.collect()
    assert (scores == 1).all()
    del scores
    gc.collect()
    assert not gpu.cuda.in_use


def test_a_failed_load_gives_its_memory_back(gpu: TensorRt, load: Load) -> None:
    with pytest.raises(EngineError, match="its manifest promises"):
        load(candidates=5)
    gc.collect()
    assert not gpu.cuda.in_use


def test_a_network_that_cannot_be_captured_runs_without_graphs(load: Load) -> None:
    with imitated_gpu(capturable=False) as tensorrt:
        engine = load()
        assert (engine.run(IMAGES)[0] == 1).all()
        assert tensorrt.cuda.launches == 0
        del engine
        gc.collect()
        assert not tensorrt.cuda.in_use


def test_graphs_are_tried_for_every_batch_size(gpu: TensorRt, load: Load) -> None:
    load(limit=3)
    timed = import_module("damoserve_server.engines.tensorrt").TIMED_RUNS
    assert gpu.cuda.launches == 3 * timed


def test_a_device_that_is_not_there_is_an_engine_error(gpu: TensorRt, load: Load) -> None:
    with pytest.raises(EngineError, match=r"CUDA: .* \(cudaErrorInvalidDevice\)"):
        load(device=1)


@pytest.mark.usefixtures("gpu", "load")
async def test_a_server_set_to_tensorrt_serves_profiles_for_gpus(serve: Serve, pictures: Pictures) -> None:
    async with serve(load_engine=load_engine, engine="tensorrt") as client:
        engines = [p.engines[0] for p in client.application._detector.result().catalogue.active()]
        names, answer = [type(engine).__name__ for engine in engines], await client.detect(pictures.red)
    assert names == ["TensorRtEngine"] * 2
    assert {detection.label for detection in answer.detections} == {"red"}
