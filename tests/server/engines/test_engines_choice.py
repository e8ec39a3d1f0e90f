"""Which engine serves a profile, and what is said where it cannot."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import onnxruntime
import pytest

from damoserve_profiles.manifest import Manifest
from damoserve_profiles.recipe import Recipe
from damoserve_profiles.repository import Repository
from damoserve_profiles.runtimes import EngineName
from damoserve_server.engines.choice import choose, load_engine
from damoserve_server.engines.engine import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    TENSORRT_PROVIDER,
    EngineError,
    EngineMissing,
    EngineOptions,
)

LIMIT = 4
ON_CUDA = (CUDA_PROVIDER, CPU_PROVIDER)
MakeManifest = Callable[..., Manifest]
Forget = Callable[[str], None]
Replace = Callable[[str, str], None]


@pytest.fixture
def manifest(pristine: Path) -> MakeManifest:
    """`manifest(target="gpu")`: what a recipe for that target would have made."""
    read = Repository(pristine).folder("colours", 3, "quick").read_manifest()
    return lambda target="cpu", **update: read.model_copy(
        update={"recipe": Recipe(name="quick", target=target)} | update
    )


@pytest.mark.parametrize(
    ("preferred", "options", "chosen"),
    [
        ("onnxruntime", {"providers": ON_CUDA}, "onnxruntime"),
        ("onnxruntime", {"engine": "tensorrt"}, "tensorrt"),
        ("tensorrt", {"providers": ON_CUDA}, "tensorrt"),
        ("tensorrt", {"providers": ON_CUDA, "engine": "onnxruntime"}, "onnxruntime"),
        ("tensorrt", {"providers": (TENSORRT_PROVIDER,)}, "tensorrt"),
    ],
)
def test_a_profile_for_a_gpu_runs_where_the_operator_or_else_its_manifest_says(
    manifest: MakeManifest, preferred: EngineName, options: dict[str, Any], chosen: EngineName
) -> None:
    assert choose(manifest("gpu", engine=preferred), EngineOptions(LIMIT, **options)) == chosen


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("gpu", {}, "built for a gpu, which this server is not set to use"),
        ("gpu", {"engine": "openvino"}, "built for a gpu"),
        ("gpu", {"engine": "onnxruntime"}, "built for a gpu"),
        ("npu", {"engine": "tensorrt"}, "built for an npu"),
        ("cpu", {"engine": "tensorrt"}, "TensorRT takes those of a recipe with target: gpu"),
    ],
)
def test_a_profile_for_another_device_is_refused_with_what_to_do(
    manifest: MakeManifest, target: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(EngineMissing, match=message):
        load_engine(b"", manifest(target), EngineOptions(LIMIT, **options))


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Forget:
    """`forget("openvino")`: the next import of the runtime, and of the engine that needs it, is the first."""

    def forget(engine: str) -> None:
        ours = (f"damoserve_server.engines.{module}" for module in (engine, "tensorrt_plan", "cuda"))
        for module in (engine, *ours):
            monkeypatch.delitem(sys.modules, module, raising=False)

    return forget


@pytest.mark.parametrize(
    "modules", [{"tensorrt": None}, {"tensorrt": ModuleType("tensorrt"), "cuda": None, "cuda.bindings": None}]
)
def test_without_tensorrt_or_cuda_it_cannot_be_forced(
    manifest: MakeManifest, forget: Forget, monkeypatch: pytest.MonkeyPatch, modules: dict[str, ModuleType | None]
) -> None:
    forget("tensorrt")
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(EngineMissing, match=r"TensorRT is not installed: install damoserve\[gpu\]"):
        load_engine(b"", manifest("gpu"), EngineOptions(LIMIT, engine="tensorrt"))


def test_without_tensorrt_a_profile_that_prefers_it_goes_to_onnx_runtime(
    manifest: MakeManifest, forget: Forget, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forget("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU_PROVIDER])
    preferring = manifest("gpu", engine="tensorrt", model="without-tensorrt")
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(EngineMissing, match=r"no CUDAExecutionProvider: install damoserve\[gpu\]"),
    ):
        load_engine(b"", preferring, EngineOptions(LIMIT, providers=ON_CUDA))
    assert "without-tensorrt/quick runs in ONNX Runtime; it would be faster with TensorRT" in caplog.text


@pytest.fixture
def replace_runtime(forget: Forget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Replace:
    """`replace_runtime("openvino", "raise ImportError")`: a module with this content is what is installed."""

    def replace(engine: str, content: str) -> None:
        forget(engine)
        (tmp_path / f"{engine}.py").write_text(content)
        monkeypatch.syspath_prepend(tmp_path)

    return replace


@pytest.mark.parametrize(
    ("engine", "title", "content"),
    [
        ("openvino", "OpenVINO", "import a_module_that_it_needs"),
        ("tensorrt", "TensorRT", "raise ImportError('libnvinfer.so.10: cannot open shared object file')"),
    ],
)
def test_a_runtime_that_is_installed_but_broken_is_not_called_missing(
    manifest: MakeManifest, replace_runtime: Replace, engine: EngineName, title: str, content: str
) -> None:
    replace_runtime(engine, content)
    target = "gpu" if engine == "tensorrt" else "cpu"
    with pytest.raises(EngineError, match=f"{title} is installed, but cannot be imported: ") as caught:
        load_engine(b"", manifest(target), EngineOptions(LIMIT, engine=engine))
    assert not isinstance(caught.value, EngineMissing)
    assert str(caught.value.__cause__) in str(caught.value)
