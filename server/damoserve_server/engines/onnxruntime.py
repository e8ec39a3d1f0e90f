"""ONNX Runtime, on a processor or, by its execution providers, on a GPU."""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles.manifest import Manifest
from damoserve_profiles.runtimes import GPU_EXTRA
from damoserve_server.engines.engine import (
    TENSORRT_PROVIDER,
    EngineError,
    EngineMissing,
    EngineOptions,
    Outputs,
    check_batch,
)
from damoserve_server.engines.providers import provider_options

# ONNX Runtime reads this when it is imported; usage statistics are nobody's business unless the operator says so.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

FATAL = 4
"""Least severity of a message that ONNX Runtime logs during a run."""
ARENA_STEP_BYTES = 16 * 2**20
"""Most bytes by which the arena grows at once."""


class OnnxRuntimeEngine:
    """A session of ONNX Runtime, with its outputs bound to buffers that are allocated once.

    The model takes `images` uint8 `[N, height, width, 3]` and gives `scores` float32 `[N, K, C]` and `boxes` float32
    `[N, K, 4]`; only N is dynamic.
    """

    def __init__(self, model: bytes, manifest: Manifest, options: EngineOptions) -> None:
        """Loads the model, and checks it against its manifest. Raises EngineError."""
        if missing := set(options.providers) - set(onnxruntime.get_available_providers()):
            # Left alone, the runtime would only warn and use the processor.
            instead = f": install {GPU_EXTRA} in place of the extra server" if options.on_gpu else ""
            raise EngineMissing(f"this ONNX Runtime has no {', '.join(sorted(missing))}{instead}")
        allocate: Callable[..., NDArray[Any]] = _open_device(options) if options.on_gpu else np.empty
        provider = provider_options(model, manifest, options)
        _share_arena()
        try:
            self._session = onnxruntime.InferenceSession(
                model,
                _session_options(manifest, options),
                providers=options.providers,
                provider_options=provider,
            )
        except Exception as error:  # the runtime has a dozen unrelated exception classes
            raise EngineError(f"ONNX Runtime refused the model: {error}") from error
        wanted, used = options.providers[0], self._session.get_providers()[0]
        if used != wanted:  # it is built in, but its libraries or its device are missing
            raise EngineError(f"ONNX Runtime could not start {wanted} and would use {used}")
        expected = _interface(manifest)
        if (actual := _describe(self._session)) != expected:
            raise EngineError(f"the model has {actual}; its manifest promises {expected}")
        limit = options.max_batch_size
        self._outputs = {name: allocate((limit, *expected[name][1]), np.float32) for name in ("scores", "boxes")}
        self._staging = allocate((limit, *expected["images"][1]), np.uint8) if options.on_gpu else None
        self._binding = self._session.io_binding()
        self._run_options = onnxruntime.RunOptions()
        self._run_options.log_severity_level = FATAL  # an interruption is no error
        self.interruptible = not options.on_gpu  # what a GPU was told to do it does

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        check_batch(images, len(self._outputs["scores"]))
        if self._staging is not None:
            np.copyto(self._staging[: len(images)], images)
            images = self._staging[: len(images)]
        self._binding.bind_input("images", "cpu", 0, np.uint8, images.shape, images.ctypes.data)
        for name, buffer in self._outputs.items():
            shape = (len(images), *buffer.shape[1:])
            self._binding.bind_output(name, "cpu", 0, np.float32, shape, buffer.ctypes.data)
        self._session.run_with_iobinding(self._binding, self._run_options)
        return self._outputs["scores"][: len(images)], self._outputs["boxes"][: len(images)]

    def interrupt(self) -> None:
        self._run_options.terminate = True  # looked at before every node

    def resume(self) -> None:
        self._run_options.terminate = False


Interface = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape, without the batch axis, of each input and output."""


def _interface(manifest: Manifest) -> Interface:
    return {
        "images": ("tensor(uint8)", (manifest.input.height, manifest.input.width, 3)),
        "scores": ("tensor(float)", (manifest.candidates, len(manifest.labels))),
        "boxes": ("tensor(float)", (manifest.candidates, 4)),
    }


def _describe(session: onnxruntime.InferenceSession) -> Interface:
    nodes = [*session.get_inputs(), *session.get_outputs()]
    return {node.name: (node.type, tuple(node.shape[1:])) for node in nodes}


def _open_device(options: EngineOptions) -> Callable[..., NDArray[Any]]:
    """Loads the libraries that the providers need; returns a function that allocates memory the device can read."""
    try:
        if TENSORRT_PROVIDER in options.providers:
            import tensorrt  # noqa: F401 - it finds its libraries where pip has put them, the provider would not

        from damoserve_server.engines.cuda import pinned_array, use_device
    except ModuleNotFoundError as error:
        raise EngineMissing(f"a GPU needs {error.name}: install {GPU_EXTRA} on the server") from error
    except ImportError as error:
        raise EngineError(f"what ONNX Runtime needs for a GPU cannot be imported: {error}") from error
    onnxruntime.preload_dlls()
    use_device(options.gpu.device)
    return pinned_array


def _session_options(manifest: Manifest, options: EngineOptions) -> onnxruntime.SessionOptions:
    session = onnxruntime.SessionOptions()
    session.intra_op_num_threads = options.threads
    session.inter_op_num_threads = 1
    # Threads that spin while they wait would take the cores from the other workers and from decoding.
    session.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session.add_session_config_entry("session.use_env_allocators", "1")
    if manifest.recipe.target == "gpu":
        # Its quantisers have float16 scales, which the kernels that ONNX Runtime would fuse them to do not take.
        session.add_session_config_entry("session.disable_quant_qdq", "1")
    return session


@functools.cache
def _share_arena() -> None:
    """Creates one arena for all sessions, which grows in small steps; by default each session has one that doubles."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    growth = onnxruntime.OrtArenaCfg({"max_power_of_two_extend_bytes": ARENA_STEP_BYTES})
    onnxruntime.create_and_register_allocator(memory, growth)
