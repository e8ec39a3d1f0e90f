"""Networks compiled by TensorRT: built once for a model and a device, kept on disk, shared by the workers.

Every precision is the graph's own: networks are strongly typed, 8-bit layers have explicit quantisers, and float32 is
not rounded to TensorFloat-32. What TensorRT 11 has removed is not used with 10 either.
"""

import functools
import hashlib
import logging
import threading
from dataclasses import dataclass
from weakref import WeakValueDictionary

import tensorrt

from damoserve_profiles.manifest import Manifest
from damoserve_server.engines.cache import EngineCache, Identity, digest
from damoserve_server.engines.cuda import describe_device
from damoserve_server.engines.engine import EngineError, EngineOptions

log = logging.getLogger(__name__)

_LEVELS = {
    tensorrt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
    tensorrt.ILogger.Severity.ERROR: logging.ERROR,
    tensorrt.ILogger.Severity.WARNING: logging.WARNING,
}


class _Logger(tensorrt.ILogger):  # type: ignore[misc]
    """A logger that puts TensorRT's messages in the server's log."""

    def log(self, severity: tensorrt.ILogger.Severity, message: str) -> None:
        log.log(_LEVELS.get(severity, logging.DEBUG), "TensorRT: %s", message)


@functools.cache
def _logger() -> _Logger:
    """Returns the process's one logger: TensorRT keeps the first, which must outlive all that was made with it."""
    return _Logger()


@dataclass(frozen=True, eq=False)
class Plan:
    """A network in the device's memory. Every worker runs it in contexts of its own."""

    engine: tensorrt.ICudaEngine
    runtime: tensorrt.Runtime
    """Runtime of the engine, which it must outlive."""


_plans: WeakValueDictionary[str, Plan] = WeakValueDictionary()
_lock = threading.Lock()


def load_plan(model: bytes, manifest: Manifest, options: EngineOptions) -> Plan:
    """Returns the plan of a model file on the calling thread's device. A build takes minutes. Raises EngineError."""
    identity = plan_identity(model, options)
    key = f"{options.gpu.device}/{digest(identity)}"
    with _lock:
        if (plan := _plans.get(key)) is None:
            cache = EngineCache(options.gpu.cache)
            plan = _plans[key] = cache.restore(identity, _load, lambda: _build(model, manifest, options))
    return plan


def machine_identity(device: int) -> Identity:
    """Returns the values that the choice of kernels depends on. Raises EngineError."""
    properties = describe_device(device)
    return {
        "tensorrt": tensorrt.__version__,
        "gpu": properties.name,
        "capability": properties.capability,
        "driver": properties.driver,
    }


def plan_identity(model: bytes, options: EngineOptions) -> Identity:
    """Returns the values that a plan of a model file depends on. Raises EngineError."""
    return {
        **machine_identity(options.gpu.device),
        "model": hashlib.sha256(model).hexdigest(),
        "max_batch_size": str(options.max_batch_size),
        "memory_bytes": str(options.gpu.memory_bytes),
    }


def _load(content: bytes) -> Plan | None:
    runtime = tensorrt.Runtime(_logger())
    engine = runtime.deserialize_cuda_engine(content)
    return None if engine is None else Plan(engine, runtime)


def _build(model: bytes, manifest: Manifest, options: EngineOptions) -> bytes:
    where = options.gpu.cache or "nowhere: set DAMOSERVE_ENGINE_CACHE to start faster the next time"
    log.info("TensorRT builds %s/%s; this takes minutes; kept in %s", manifest.model, manifest.profile, where)
    builder = tensorrt.Builder(_logger())
    # TensorRT 11 has no other networks and ignores the flag.
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, _logger())
    if not parser.parse(model):
        errors = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise EngineError(f"TensorRT refused the model: {errors}")
    config = _configure(builder, network, options)
    cache, machine = EngineCache(options.gpu.cache), machine_identity(options.gpu.device)
    config.set_timing_cache(config.create_timing_cache(cache.read(machine, "timing") or b""), False)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise EngineError("TensorRT could not build the model; its reasons are in the log")
    if (timing := config.get_timing_cache()) is not None:  # None where what was kept did not suit
        cache.write(machine, "timing", bytes(timing.serialize()))
    return bytes(built)


def _configure(
    builder: tensorrt.Builder, network: tensorrt.INetworkDefinition, options: EngineOptions
) -> tensorrt.IBuilderConfig:
    config = builder.create_builder_config()
    config.clear_flag(tensorrt.BuilderFlag.TF32)
    if options.gpu.memory_bytes is not None:
        config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, options.gpu.memory_bytes)
    images = network.get_input(0)
    _, *rest = images.shape
    profile = builder.create_optimization_profile()
    # The fastest kernels are wanted where the device is busy, which is where batches are full.
    smallest, largest = (1, *rest), (options.max_batch_size, *rest)
    profile.set_shape(images.name, smallest, largest, largest)
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"the model takes no batches of 1 to {options.max_batch_size}: its input is {images.shape}")
    return config
