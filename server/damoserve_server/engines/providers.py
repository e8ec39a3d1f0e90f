"""Options of ONNX Runtime's execution providers for NVIDIA GPUs."""

import logging
from collections.abc import Mapping
from pathlib import Path

from damoserve_profiles.manifest import Manifest
from damoserve_server.engines.cache import digest
from damoserve_server.engines.engine import CUDA_PROVIDER, TENSORRT_PROVIDER, EngineOptions

log = logging.getLogger(__name__)

ProviderOptions = Mapping[str, str]


def provider_options(model: bytes, manifest: Manifest, options: EngineOptions) -> list[ProviderOptions]:
    """Returns the options of each of `options.providers`, none for those of other devices. Raises EngineError."""
    return [_options_of(provider, model, manifest, options) for provider in options.providers]


def _options_of(provider: str, model: bytes, manifest: Manifest, options: EngineOptions) -> ProviderOptions:
    if provider == CUDA_PROVIDER:
        return cuda_options(options)
    if provider == TENSORRT_PROVIDER:
        cache = options.gpu.cache
        return tensorrt_options(manifest, options) | ({} if cache is None else _cache_options(model, options, cache))
    return {}


def cuda_options(options: EngineOptions) -> dict[str, str]:
    """Returns the options of the CUDA provider."""
    chosen = {
        "device_id": str(options.gpu.device),
        # The default doubles the arena at every step, for each session by itself.
        "arena_extend_strategy": "kSameAsRequested",
        # Every batch size is run at the start, so the search delays no request.
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        # Floats as in the file: TensorFloat-32 keeps 10 bits of them.
        "use_tf32": "0",
    }
    if options.gpu.memory_bytes is not None:
        chosen["gpu_mem_limit"] = str(options.gpu.memory_bytes)
    return chosen


def tensorrt_options(manifest: Manifest, options: EngineOptions) -> dict[str, str]:
    """Returns the options of the TensorRT provider, without a cache.

    Reduced precisions are allowed for graphs that are written in them.
    """
    shape = f"{manifest.input.height}x{manifest.input.width}x3"
    on_gpu = manifest.recipe.target == "gpu"
    largest = f"images:{options.max_batch_size}x{shape}"
    chosen = {
        "device_id": str(options.gpu.device),
        "trt_fp16_enable": str(int(on_gpu)),
        "trt_int8_enable": str(int(on_gpu and manifest.recipe.quantise is not None)),
        "trt_profile_min_shapes": f"images:1x{shape}",
        "trt_profile_opt_shapes": largest,
        "trt_profile_max_shapes": largest,
    }
    if options.gpu.memory_bytes is not None:
        chosen["trt_max_workspace_size"] = str(options.gpu.memory_bytes)
    return chosen


def _cache_options(model: bytes, options: EngineOptions, cache: Path) -> dict[str, str]:
    """Returns the options of the cache: a folder for each model, as the provider compares nothing but structure."""
    from damoserve_server.engines.tensorrt_plan import machine_identity, plan_identity

    root = cache / "onnxruntime"
    engines = root / digest(plan_identity(model, options))
    timings = root / digest(machine_identity(options.gpu.device))
    try:
        for folder in (engines, timings):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        log.warning("engines cannot be kept, so the next start builds them again: %s", error)
        return {}
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(engines),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(timings),
    }
