"""The choice of the runtime that a profile is loaded in."""

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from damoserve_profiles.manifest import Manifest
from damoserve_profiles.runtimes import GPU_EXTRA, OPENVINO_EXTRA, EngineName
from damoserve_server.engines.engine import Engine, EngineError, EngineLoader, EngineMissing, EngineOptions
from damoserve_server.engines.onnxruntime import OnnxRuntimeEngine

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Optional:
    """A runtime that need not be installed."""

    title: str
    extra: str
    modules: frozenset[str]
    """Modules of which one is missing where it is not installed."""


_OPTIONAL: Final[Mapping[EngineName, _Optional]] = MappingProxyType(
    {
        "openvino": _Optional("OpenVINO", OPENVINO_EXTRA, frozenset({"openvino"})),
        "tensorrt": _Optional("TensorRT", GPU_EXTRA, frozenset({"tensorrt", "cuda", "cuda.bindings"})),
    }
)


def load_engine(model: bytes, manifest: Manifest, options: EngineOptions) -> Engine:
    """Loads a profile in `options.engine`, else in the engine that its manifest prefers.

    ONNX Runtime takes the place of a preferred engine that is not installed. Raises EngineMissing where there is no
    such choice, and EngineError.
    """
    chosen = choose(manifest, options)
    if chosen == "onnxruntime":
        return OnnxRuntimeEngine(model, manifest, options)
    load = _import(chosen)
    if load is not None:
        return load(model, manifest, options)
    runtime = _OPTIONAL[chosen]
    if manifest.precision is not None:
        raise EngineMissing(f"{manifest.precision} needs {runtime.title}: install {runtime.extra} on the server")
    if options.engine is not None:
        raise EngineMissing(
            f"{runtime.title} is not installed: install {runtime.extra}, or leave the engine to the server"
        )
    _say_slower(f"{manifest.model}/{manifest.profile}", runtime)
    return OnnxRuntimeEngine(model, manifest, options)


def choose(manifest: Manifest, options: EngineOptions) -> EngineName:
    """Returns the engine for a profile, whether or not it is installed. Raises EngineMissing where there is none."""
    _check_target(manifest, options)
    if manifest.precision is not None:
        if options.engine not in (None, "openvino"):
            raise EngineMissing(f"{manifest.precision} needs OpenVINO, but the server is set to {options.engine} only")
        return "openvino"
    if options.engine is not None:
        return options.engine
    # A preference was measured on one kind of device, and says nothing about the others.
    return manifest.engine if options.on_gpu == (manifest.engine == "tensorrt") else "onnxruntime"


def _check_target(manifest: Manifest, options: EngineOptions) -> None:
    """Checks that a graph was made for the server's device. Raises EngineMissing where it was not."""
    target = manifest.recipe.target
    if target == "npu":
        raise EngineMissing("the profile was built for an npu, which this server does not use")
    if target == "gpu" and not (options.on_gpu and options.engine != "openvino"):
        raise EngineMissing("the profile was built for a gpu, which this server is not set to use (DAMOSERVE_ENGINE)")
    if target == "cpu" and options.engine == "tensorrt":
        raise EngineMissing("the profile was built for a cpu; TensorRT takes those of a recipe with target: gpu")


@functools.cache  # once, not for every worker
def _say_slower(profile: str, runtime: _Optional) -> None:
    log.info("%s runs in ONNX Runtime; it would be faster with %s: %s", profile, runtime.title, runtime.extra)


def _import(engine: EngineName) -> EngineLoader | None:
    """Imports an engine; returns None where its runtime is not installed. Raises EngineError where it is broken."""
    try:
        if engine == "openvino":
            from damoserve_server.engines.openvino import OpenVinoEngine

            return OpenVinoEngine
        from damoserve_server.engines.tensorrt import TensorRtEngine
    except ImportError as error:
        runtime = _OPTIONAL[engine]
        if isinstance(error, ModuleNotFoundError) and error.name in runtime.modules:
            return None
        raise EngineError(f"{runtime.title} is installed, but cannot be imported: {error}") from error
    return TensorRtEngine
