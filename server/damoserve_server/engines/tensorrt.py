"""TensorRT, on an NVIDIA GPU."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorrt
from numpy.typing import NDArray

from damoserve_profiles.manifest import Manifest
from damoserve_server.engines.cuda import CudaStream, Resources, pinned_array, use_device
from damoserve_server.engines.engine import EngineError, EngineOptions, Outputs, check_batch
from damoserve_server.engines.tensorrt_plan import load_plan

TIMED_RUNS = 5
"""Number of runs of each way to compute a batch, of which the quickest counts."""

Interface = dict[str, tuple[tensorrt.DataType, tuple[int, ...]]]
"""Type and shape, without the batch axis, of each input and output."""


class TensorRtEngine:
    """A plan that the workers share, with a stream, pinned buffers and contexts of this worker.

    The model takes `images` uint8 `[N, height, width, 3]` and gives `scores` float32 `[N, K, C]` and `boxes` float32
    `[N, K, 4]`. Every batch size has a context of its own and, where that is faster, a CUDA graph from the pinned
    images to the pinned outputs.
    """

    def __init__(self, model: bytes, manifest: Manifest, options: EngineOptions) -> None:
        """Loads or builds the plan, and checks it against the manifest. Raises EngineError."""
        self._device = options.gpu.device
        use_device(self._device)
        self._resources = Resources()
        self._plan = load_plan(model, manifest, options)
        expected = _interface(manifest)
        if (actual := _describe(self._plan.engine)) != expected:
            raise EngineError(f"the model has {actual}; its manifest promises {expected}")
        limit = options.max_batch_size
        self._buffers = {
            name: Buffer.allocate(self._resources, (limit, *shape), tensorrt.nptype(kind))
            for name, (kind, shape) in expected.items()
        }
        stream = self._resources.stream()
        scratch = Scratch.allocate(self._resources, self._plan.engine)
        # One context for all would need its graphs anew whenever the batch changes. They never run at the same time.
        self._batches = [
            BatchBuffers(_context(self._plan.engine, scratch, stream), self._buffers, stream, size)
            for size in range(1, limit + 1)
        ]

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        check_batch(images, len(self._batches))
        count = len(images)
        use_device(self._device)  # of this thread, which need not be the one that loaded
        np.copyto(self._buffers["images"].host[:count], images)
        self._batches[count - 1].run()
        return self._buffers["scores"].host[:count], self._buffers["boxes"].host[:count]

    def close(self) -> None:
        """Frees the device's memory; the plan goes with the last engine that uses it."""
        self._resources.close()
        self._batches.clear()


@dataclass(frozen=True)
class Buffer:
    """Pinned memory and its counterpart on the device, for the largest batch."""

    host: NDArray[Any]
    device: int
    """Address of the memory on the device."""

    @classmethod
    def allocate(cls, resources: Resources, shape: tuple[int, ...], dtype: type[np.generic]) -> "Buffer":
        """Allocates both."""
        host = pinned_array(shape, dtype)
        return cls(host, resources.device_memory(host.nbytes))


@dataclass(frozen=True)
class Scratch:
    """Memory on the device for activations, shared by the contexts of one worker."""

    address: int
    size: int

    @classmethod
    def allocate(cls, resources: Resources, engine: tensorrt.ICudaEngine) -> "Scratch":
        """Allocates as much as the engine needs."""
        return cls(resources.device_memory(engine.device_memory_size_v2), engine.device_memory_size_v2)


class BatchBuffers:
    """A context for one batch size, bound to the buffers and ready to run."""

    def __init__(
        self, context: tensorrt.IExecutionContext, buffers: Mapping[str, Buffer], stream: CudaStream, size: int
    ) -> None:
        """Binds the buffers, and runs a few times to find the fastest way. Raises EngineError."""
        self._context, self._buffers, self._stream, self._size = context, buffers, stream, size
        if not context.set_input_shape("images", (size, *buffers["images"].host.shape[1:])):
            raise EngineError(f"TensorRT refused a batch of {size}")
        for name, buffer in buffers.items():
            if not context.set_tensor_address(name, buffer.device):
                raise EngineError(f"TensorRT refused the memory of {name}")
        self._graph: Callable[[], None] | None = None
        self.run()  # before a capture: the first run with new shapes does more than later ones
        graph = stream.capture(self._enqueue)
        if graph is not None and self._seconds(graph) < self._seconds(self._enqueue):
            self._graph = graph

    def run(self) -> None:
        """Computes from the images in the pinned buffer to the outputs in theirs. Raises EngineError."""
        (self._graph or self._enqueue)()
        self._stream.synchronise()

    def _enqueue(self) -> None:
        images = self._buffers["images"]
        self._stream.upload(images.host[: self._size], images.device)
        if not self._context.execute_async_v3(int(self._stream)):
            raise EngineError("TensorRT could not start the network; its reasons are in the log")
        for name in ("scores", "boxes"):
            self._stream.download(self._buffers[name].device, self._buffers[name].host[: self._size])

    def _seconds(self, start: Callable[[], None]) -> float:
        """Returns the seconds of the quickest of some runs: whatever else the machine does only makes them slower."""
        seconds = []
        for _ in range(TIMED_RUNS):
            started = time.perf_counter()
            start()
            self._stream.synchronise()
            seconds.append(time.perf_counter() - started)
        return min(seconds)


def _context(engine: tensorrt.ICudaEngine, scratch: Scratch, stream: CudaStream) -> tensorrt.IExecutionContext:
    context = engine.create_execution_context(tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is None:
        raise EngineError("TensorRT could not prepare the network to run; its reasons are in the log")
    context.set_device_memory(scratch.address, scratch.size)
    if not context.set_optimization_profile_async(0, int(stream)):
        raise EngineError("TensorRT refused the batch sizes that it was built for")
    return context


def _interface(manifest: Manifest) -> Interface:
    return {
        "images": (tensorrt.DataType.UINT8, (manifest.input.height, manifest.input.width, 3)),
        "scores": (tensorrt.DataType.FLOAT, (manifest.candidates, len(manifest.labels))),
        "boxes": (tensorrt.DataType.FLOAT, (manifest.candidates, 4)),
    }


def _describe(engine: tensorrt.ICudaEngine) -> Interface:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return {name: (engine.get_tensor_dtype(name), tuple(engine.get_tensor_shape(name))[1:]) for name in names}
