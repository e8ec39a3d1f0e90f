"""What holds for every engine, whatever runs the network.

Those for a GPU need one, and the extra gpu: `python -m pytest tests/server/test_engines.py -m gpu`.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from damoserve_profiles.manifest import InputSpec
from damoserve_profiles.recipe import Recipe
from damoserve_profiles.repository import Repository
from damoserve_server.engines.choice import load_engine
from damoserve_server.engines.engine import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    TENSORRT_PROVIDER,
    Engine,
    EngineError,
    EngineOptions,
    GpuOptions,
    Outputs,
    close_engine,
)
from tests.support.imitated_gpu import imitated_gpu

LIMIT = 4
ON_CUDA = (CUDA_PROVIDER, CPU_PROVIDER)
OPTIONS: dict[str, dict[str, Any]] = {
    "onnxruntime": {"engine": "onnxruntime"},
    "openvino": {"engine": "openvino"},
    "onnxruntime-cuda": {"engine": "onnxruntime", "providers": ON_CUDA},
    "onnxruntime-tensorrt": {"engine": "onnxruntime", "providers": (TENSORRT_PROVIDER, *ON_CUDA)},
    "tensorrt": {"engine": "tensorrt"},
}
OPTIONS["tensorrt-imitated"] = OPTIONS["tensorrt"]
ON_PROCESSOR = ("onnxruntime", "openvino", "tensorrt-imitated")
Load = Callable[..., Engine]


def require_gpu(providers: Sequence[str]) -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="needs the extra gpu")
    error, count = runtime.cudaGetDeviceCount()
    if error != runtime.cudaError_t.cudaSuccess or not count:
        pytest.skip("needs a CUDA device")
    if not set(providers) <= set(onnxruntime.get_available_providers()):
        pytest.skip("needs onnxruntime-gpu instead of onnxruntime")


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name in ON_PROCESSOR else pytest.mark.gpu) for name in OPTIONS],
)
def load(request: pytest.FixtureRequest, pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """Loads the network of the four quarters: `load(model=..., **update of the manifest)`."""
    name = request.param
    if name == "openvino":
        pytest.importorskip("openvino", reason="needs the extra openvino")
    if name not in ON_PROCESSOR:
        require_gpu(OPTIONS[name].get("providers", ()))
    target = "cpu" if name in ("onnxruntime", "openvino") else "gpu"
    folder = Repository(pristine).folder("colours", 3, "quick")
    manifest = folder.read_manifest().model_copy(update={"recipe": Recipe(name="quick", target=target)})
    cache = tmp_path_factory.mktemp("cache")

    def load(model: bytes | None = None, **update: Any) -> Engine:
        options = EngineOptions(LIMIT, gpu=GpuOptions(cache=cache), **OPTIONS[name])
        return load_engine(model or folder.model_path.read_bytes(), manifest.model_copy(update=update), options)

    with imitated_gpu() if name == "tensorrt-imitated" else nullcontext():
        yield load


@pytest.fixture(scope="module")
def engine(load: Load) -> Iterator[Engine]:
    engine = load()
    yield engine
    close_engine(engine)


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (LIMIT, 32, 64, 3), dtype=np.uint8)


def expected(images: NDArray[np.uint8]) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """Scores and boxes, computed without any engine."""
    means = images.reshape(-1, 2, 16, 2, 32, 3).mean((2, 4)).reshape(-1, 4, 3) / 255
    boxes = np.array([[x, y, x + 32, y + 16] for y in (0, 16) for x in (0, 32)], np.float32)
    return means, np.broadcast_to(boxes, (len(images), 4, 4))


def assert_answers(outputs: Outputs, images: NDArray[np.uint8]) -> None:
    for found, wanted in zip(outputs, expected(images), strict=True):
        assert found.dtype == np.float32
        assert found.shape == wanted.shape
        assert np.allclose(found, wanted, rtol=0, atol=1e-5)


def test_batches_of_every_size_in_any_order_are_what_their_images_are(
    engine: Engine, images: NDArray[np.uint8]
) -> None:
    for size in (LIMIT, 1, 3, 2, LIMIT, 1):
        for start in range(LIMIT - size + 1):
            part = images[start : start + size]
            assert_answers(engine.run(part), part)


def test_outputs_hold_until_the_next_run_whatever_becomes_of_the_images(
    engine: Engine, images: NDArray[np.uint8]
) -> None:
    given = images.copy()
    first = engine.run(given)
    given[:] = 0
    assert_answers(first, images)
    second = engine.run(images[:1])
    assert all(np.shares_memory(new, old) for new, old in zip(second, first, strict=True))


def test_two_engines_of_a_profile_do_not_share_what_they_give(
    load: Load, engine: Engine, images: NDArray[np.uint8]
) -> None:
    other = load()
    mine, theirs = engine.run(images[:2]), other.run(images[2:])
    assert_answers(mine, images[:2])
    assert_answers(theirs, images[2:])
    close_engine(other)
    close_engine(other)
    assert_answers(engine.run(images), images)


def test_another_thread_than_the_one_that_loaded_may_run_it(engine: Engine, images: NDArray[np.uint8]) -> None:
    with ThreadPoolExecutor(1) as thread:
        assert_answers(thread.submit(engine.run, images).result(), images)


@pytest.mark.parametrize("count", [0, LIMIT + 1, 3 * LIMIT])
def test_a_batch_that_does_not_fit_is_refused_and_does_no_harm(
    engine: Engine, images: NDArray[np.uint8], count: int
) -> None:
    before = engine.run(images)
    with pytest.raises(EngineError, match=f"a batch of {count} images in an engine for 1 to {LIMIT}"):
        engine.run(np.zeros((count, *images.shape[1:]), np.uint8))
    assert_answers(before, images)


@pytest.mark.parametrize(
    "update",
    [{"candidates": 5}, {"labels": ("red", "green")}, {"input": InputSpec(width=32, height=64)}],
    ids=lambda update: next(iter(update)),
)
def test_a_model_that_is_not_the_manifests_is_refused(load: Load, update: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="its manifest promises"):
        load(**update)


@pytest.mark.parametrize("damage", [lambda model: b"no model", lambda model: model[: len(model) // 2]])
def test_a_damaged_file_is_refused(load: Load, pristine: Path, damage: Callable[[bytes], bytes]) -> None:
    model = Repository(pristine).folder("colours", 3, "quick").model_path.read_bytes()
    with pytest.raises(EngineError):
        load(damage(model))
