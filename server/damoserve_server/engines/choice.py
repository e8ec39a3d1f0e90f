"""Which runtime a profile is loaded in."""

import functools
import logging

from damoserve_profiles.manifest import Manifest
from damoserve_profiles.runtimes import OPENVINO_EXTRA, EngineName
from damoserve_server.engines import CPU_PROVIDER, Engine, EngineLoader, EngineMissing, EngineOptions
from damoserve_server.engines.onnxruntime import OnnxRuntimeEngine

log = logging.getLogger(__name__)


def load_engine(model: bytes, manifest: Manifest, options: EngineOptions) -> Engine:
    """Loads a profile in `options.engine`, else in the engine that its manifest prefers.

    ONNX Runtime takes the place of a preferred engine that is not installed. Raises EngineMissing where there is no
    such choice, and EngineError.
    """
    _check_target(manifest, options)
    if choose(manifest, options) == "onnxruntime":
        return OnnxRuntimeEngine(model, manifest, options)
    openvino = _openvino()
    if openvino is not None:
        return openvino(model, manifest, options)
    if manifest.precision is not None:
        raise EngineMissing(f"{manifest.precision} needs OpenVINO: install {OPENVINO_EXTRA} on the server")
    if options.engine is not None:
        raise EngineMissing(f"OpenVINO is not installed: install {OPENVINO_EXTRA}, or leave the engine to the server")
    _say_slower(manifest.model, manifest.profile)
    return OnnxRuntimeEngine(model, manifest, options)


def choose(manifest: Manifest, options: EngineOptions) -> EngineName:
    """The engine that is wanted, whether or not it is installed. Raises EngineMissing where none can be."""
    if manifest.precision is not None:
        if options.engine not in (None, "openvino"):
            raise EngineMissing(f"{manifest.precision} needs OpenVINO, but the server is set to {options.engine} only")
        return "openvino"
    if options.engine is not None:
        return options.engine
    # What the manifest prefers was measured on a processor, and says nothing about other devices.
    return manifest.engine if options.providers == (CPU_PROVIDER,) else "onnxruntime"


def _check_target(manifest: Manifest, options: EngineOptions) -> None:
    """Raises EngineMissing for a graph that was made for other devices than the server's."""
    target = manifest.recipe.target
    if target == "npu" or (target == "gpu" and options.providers == (CPU_PROVIDER,)):
        raise EngineMissing(f"the profile was built for a {target}, which this server does not use")


@functools.cache  # once, not for every worker
def _say_slower(model: str, profile: str) -> None:
    log.info("%s/%s runs in ONNX Runtime; it would be faster with OpenVINO: %s", model, profile, OPENVINO_EXTRA)


def _openvino() -> EngineLoader | None:
    try:
        from damoserve_server.engines.openvino import OpenVinoEngine
    except ImportError:
        return None
    return OpenVinoEngine
