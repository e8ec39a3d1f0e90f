"""Memory, streams and graphs of CUDA's runtime, given back in time.

Nothing here is tied to a network. What a runtime of networks allocates itself is its own affair.
"""

import ctypes
import math
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from cuda.bindings import nvml, runtime
from numpy.typing import DTypeLike, NDArray

from damoserve_server.engines.engine import EngineError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Device:
    """The properties of a GPU that what was built for it depends on."""

    name: str
    capability: str
    driver: str


def use_device(number: int) -> None:
    """Makes a device the calling thread's. Raises EngineError where there is no such device."""
    _check(runtime.cudaSetDevice(number))


def describe_device(number: int) -> Device:
    """Reads the properties of a device. Raises EngineError."""
    properties = _check(runtime.cudaGetDeviceProperties(number))
    try:
        nvml.init_v2()
        driver = nvml.system_get_driver_version()
        nvml.shutdown()
    except (nvml.NvmlError, RuntimeError) as error:  # the latter where its library is not there
        raise EngineError(f"the NVIDIA driver does not tell its version: {error}") from error
    return Device(properties.name.decode(), f"{properties.major}.{properties.minor}", driver)


def pinned_array(shape: Shape, dtype: DTypeLike) -> NDArray[Any]:
    """Allocates an array that a device can access by itself, freed with its last view. Raises EngineError."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    address = int(_check(runtime.cudaHostAlloc(size, runtime.cudaHostAllocDefault)))
    memory = (ctypes.c_uint8 * size).from_address(address)
    # When the process ends, the driver may be gone already.
    weakref.finalize(memory, runtime.cudaFreeHost, address).atexit = False
    return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)


class Resources:
    """Allocations on one device, freed together: by `close`, or when nothing refers to them any more."""

    def __init__(self) -> None:
        self._frees = ExitStack()

    def close(self) -> None:
        """Frees everything."""
        self._frees.close()

    def __del__(self) -> None:
        self.close()

    def device_memory(self, size: int) -> int:
        """Allocates `size` bytes on the device, and returns their address."""
        pointer = _check(runtime.cudaMalloc(max(size, 1)))  # none at all would give no address
        self._frees.callback(runtime.cudaFree, pointer)
        return int(pointer)

    def stream(self) -> "CudaStream":
        """Creates a stream, which is destroyed with the other resources."""
        handle = _check(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))
        self._frees.callback(runtime.cudaStreamDestroy, handle)
        return CudaStream(handle, self._frees)


class CudaStream:
    """A queue of work that the device does in order. Errors of the device show when its work is waited for."""

    def __init__(self, handle: runtime.cudaStream_t, frees: ExitStack) -> None:
        self._handle = handle
        self._frees = frees

    def __int__(self) -> int:
        return int(self._handle)

    def upload(self, source: NDArray[Any], target: int) -> None:
        """Copies a pinned array to the device."""
        to_device = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        _check(runtime.cudaMemcpyAsync(target, source.ctypes.data, source.nbytes, to_device, self._handle))

    def download(self, source: int, target: NDArray[Any]) -> None:
        """Fills a pinned array from the device."""
        to_host = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        _check(runtime.cudaMemcpyAsync(target.ctypes.data, source, target.nbytes, to_host, self._handle))

    def synchronise(self) -> None:
        """Waits for all work. Raises EngineError where some of it failed."""
        _check(runtime.cudaStreamSynchronize(self._handle))

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """Returns a function that puts the same work on the stream at once; None where `work` cannot be captured."""
        # Other threads may allocate meanwhile; only this one's work is captured.
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _check(runtime.cudaStreamBeginCapture(self._handle, mode))
        try:
            work()
            refused = False
        except EngineError:
            refused = True
        error, graph = runtime.cudaStreamEndCapture(self._handle)
        if error != runtime.cudaError_t.cudaSuccess:
            runtime.cudaGetLastError()  # or the next call would report it
            return None
        try:
            executable = None if refused else _check(runtime.cudaGraphInstantiate(graph, 0))
        finally:
            runtime.cudaGraphDestroy(graph)
        if executable is None:
            return None
        self._frees.callback(runtime.cudaGraphExecDestroy, executable)

        def launch() -> None:
            _check(runtime.cudaGraphLaunch(executable, self._handle))

        return launch


def _check(result: tuple[Any, ...]) -> Any:
    """Returns the value of a call of the runtime, which returns its error first. Raises EngineError."""
    error, *values = result
    if error != runtime.cudaError_t.cudaSuccess:
        _, text = runtime.cudaGetErrorString(error)
        raise EngineError(f"CUDA: {text.decode()} ({error.name})")
    return values[0] if values else None
