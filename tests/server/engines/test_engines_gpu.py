"""What of the engines for GPUs can be told without one: what is kept and when it is built again, what is asked for."""

import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import pytest

from damoserve_profiles.manifest import Manifest
from damoserve_profiles.recipe import Quantise, Recipe
from damoserve_profiles.repository import Repository
from damoserve_server.engines.cache import EngineCache, Identity, digest
from damoserve_server.engines.engine import CPU_PROVIDER, CUDA_PROVIDER, EngineError, EngineOptions, GpuOptions
from damoserve_server.engines.providers import cuda_options, provider_options, tensorrt_options

MACHINE = {"gpu": "NVIDIA H100", "capability": "9.0", "driver": "580.65.06", "tensorrt": "10.16.1.11"}
IDENTITY = MACHINE | {"model": "0123", "max_batch_size": "4"}


class Runtime:
    """Builds and loads as TensorRT does, and counts. `version` is what it can load."""

    def __init__(self, version: bytes = b"10") -> None:
        self.version = version
        self.built = 0

    def build(self) -> bytes:
        self.built += 1
        return self.version + b" plan"

    def load(self, content: bytes) -> str | None:
        return content.decode() if content.startswith(self.version) else None


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "not" / "there" / "yet"


def restore(folder: Path | None, runtime: Runtime, identity: Identity = IDENTITY) -> str:
    """As a new process would."""
    return EngineCache(folder).restore(identity, runtime.load, runtime.build)


def test_what_was_built_is_found_again(folder: Path, runtime: Runtime) -> None:
    assert [restore(folder, runtime) for _ in range(3)] == ["10 plan"] * 3
    assert runtime.built == 1
    assert [path.name for path in folder.iterdir()] == [f"{digest(IDENTITY)}.plan"]
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("what", IDENTITY)
def test_another_model_machine_or_runtime_has_its_own(folder: Path, runtime: Runtime, what: str) -> None:
    restore(folder, runtime)
    restore(folder, runtime, IDENTITY | {what: "another"})
    assert runtime.built == 2
    restore(folder, runtime)
    assert runtime.built == 2


def test_the_order_of_an_identity_does_not_matter() -> None:
    assert digest(IDENTITY) == digest(dict(reversed(IDENTITY.items())))


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: b"",
        lambda kept: kept[:20],
        lambda kept: kept[:-1],
        lambda kept: kept[:-1] + b"?",
        lambda _: b"?" * 99,
    ],
    ids=["empty", "no hash", "cut short", "changed", "other"],
)
def test_what_was_damaged_is_built_again(
    folder: Path, runtime: Runtime, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    restore(folder, runtime)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert restore(folder, runtime) == "10 plan"
    assert runtime.built == 2
    assert path.read_bytes() == whole
    assert "is damaged and is built again" in caplog.text


def test_what_the_runtime_refuses_is_built_again(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    restore(folder, Runtime(b"10"))
    newer = Runtime(b"11")
    assert [restore(folder, newer) for _ in range(2)] == ["11 plan"] * 2
    assert newer.built == 1
    assert "is refused and is built again" in caplog.text


def test_what_cannot_be_loaded_even_when_new_is_an_error_and_not_kept(
    folder: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "build", lambda: b"nonsense")
    with pytest.raises(EngineError, match="cannot load what it has built"):
        restore(folder, runtime)
    assert not folder.exists()


def test_a_failed_build_leaves_nothing(folder: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> bytes:
        raise EngineError("no memory")

    monkeypatch.setattr(runtime, "build", fail)
    with pytest.raises(EngineError, match="no memory"):
        restore(folder, runtime)
    assert not folder.exists()


def test_without_a_folder_it_is_built_every_time(runtime: Runtime) -> None:
    assert [restore(None, runtime) for _ in range(2)] == ["10 plan"] * 2
    assert runtime.built == 2


def test_a_folder_that_cannot_be_used_costs_time_only(
    tmp_path: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        assert restore(tmp_path / "file" / "cache", runtime) == "10 plan"
    assert "so the next start builds it again" in caplog.text


def test_a_file_that_cannot_be_read_is_built_again(
    folder: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / f"{digest(IDENTITY)}.plan"
    path.mkdir(parents=True)
    assert restore(folder, runtime) == "10 plan"
    assert "cannot be read and is built again" in caplog.text


def test_kinds_of_files_do_not_meet(folder: Path) -> None:
    cache = EngineCache(folder)
    cache.write(MACHINE, "timing", b"timings")
    assert cache.read(MACHINE, "timing") == b"timings"
    assert cache.read(MACHINE, "plan") is None


class MakeManifest(Protocol):
    """Makes a manifest of a profile for this target."""

    def __call__(self, target: str, quantise: Quantise | None = None) -> Manifest: ...


@pytest.fixture
def manifest(pristine: Path) -> MakeManifest:
    """`manifest("gpu")`: 64 x 32 pixels, by a recipe for that target."""
    read = Repository(pristine).folder("colours", 3, "quick").read_manifest()
    return lambda target, quantise=None: read.model_copy(
        update={"recipe": Recipe.model_validate({"name": "quick", "target": target, "quantise": quantise})}
    )


def test_providers_take_the_device_the_batches_and_the_precision_of_the_graph(manifest: MakeManifest) -> None:
    options = EngineOptions(8, gpu=GpuOptions(device=1, memory_bytes=2**30))
    chosen = tensorrt_options(manifest("gpu", Quantise(calibration_images=9)), options)
    assert chosen | {"trt_fp16_enable": "1", "trt_int8_enable": "1", "device_id": "1"} == chosen
    assert chosen["trt_profile_min_shapes"] == "images:1x32x64x3"
    assert chosen["trt_profile_max_shapes"] == "images:8x32x64x3"
    assert chosen["trt_max_workspace_size"] == cuda_options(options)["gpu_mem_limit"] == str(2**30)
    assert (tensorrt_options(manifest("gpu"), options)["trt_int8_enable"]) == "0"
    assert (tensorrt_options(manifest("cpu"), options)["trt_fp16_enable"]) == "0"


def test_every_provider_has_its_options_and_only_gpus_have_any(manifest: MakeManifest) -> None:
    options = EngineOptions(1, providers=(CUDA_PROVIDER, CPU_PROVIDER))
    cuda, cpu = provider_options(b"", manifest("cpu"), options)
    assert cuda == {
        "device_id": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "use_tf32": "0",
    }
    assert cpu == {}


KEPT = ("trt_engine_cache_enable", "trt_engine_cache_path", "trt_timing_cache_enable", "trt_timing_cache_path")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_the_installed_runtime_knows_the_options(manifest: MakeManifest, provider: str) -> None:
    spec = find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    library = Path(spec.origin).parent / "capi" / f"libonnxruntime_providers_{provider}.so"
    if not library.exists():
        pytest.skip("needs onnxruntime-gpu instead of onnxruntime")
    options = EngineOptions(4, gpu=GpuOptions(memory_bytes=1))
    asked = {"cuda": cuda_options(options), "tensorrt": tensorrt_options(manifest("gpu"), options)}[provider]
    content = library.read_bytes()
    names = [*asked, *(KEPT if provider == "tensorrt" else ("kSameAsRequested", "EXHAUSTIVE"))]
    assert [name for name in names if b"\0" + name.encode() + b"\0" not in content] == []
