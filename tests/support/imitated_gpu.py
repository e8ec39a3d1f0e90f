"""CUDA and TensorRT as far as our engine calls them, on the processor: memory is the process's, and checked at every
access; networks are run by ONNX Runtime; a stream does its work at once, or notes it down while it is captured.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorInvalidDevice = 101


OK = Error.cudaSuccess


class Cuda:
    """`cuda.bindings.runtime` of a machine with one GPU."""

    cudaError_t = Error
    cudaHostAllocDefault, cudaStreamNonBlocking = 0, 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStream_t = int

    def __init__(self) -> None:
        self.memory: dict[int, ctypes.Array[Any]] = {}
        self.streams: dict[int, list[Callable[[], None]] | None] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launches = 0
        self.handles = 0

    @property
    def in_use(self) -> int:
        return len(self.memory) + len(self.streams) + len(self.graphs)

    def _handle(self) -> int:
        self.handles += 1
        return self.handles

    def view(self, address: int, size: int) -> Any:
        """The bytes there; they must lie within one piece of memory that is in use."""
        for start, block in self.memory.items():
            if start <= address and address + size <= start + len(block):
                return memoryview(block).cast("B")[address - start : address - start + size]
        raise AssertionError(f"{size} bytes at {address} are not allocated")

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        noted = self.streams[stream]
        work() if noted is None else noted.append(work)

    def cudaSetDevice(self, device: int) -> tuple[Error]:
        return (OK if device == 0 else Error.cudaErrorInvalidDevice,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Error, Any]:
        return OK, SimpleNamespace(name=b"Imitation", major=9, minor=0)

    def cudaGetErrorString(self, error: Error) -> tuple[Error, bytes]:
        return OK, error.name.encode()

    def cudaGetLastError(self) -> tuple[Error]:
        return (OK,)

    def cudaMalloc(self, size: int) -> tuple[Error, int]:
        block = (ctypes.c_uint8 * size)()
        self.memory[ctypes.addressof(block)] = block
        return OK, ctypes.addressof(block)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Error, int]:
        return self.cudaMalloc(size)

    def cudaFree(self, address: int) -> tuple[Error]:
        del self.memory[address]
        return (OK,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[Error]:
        def copy() -> None:
            self.view(target, size)[:] = self.view(source, size)

        self.enqueue(stream, copy)
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Error, int]:
        handle = self._handle()
        self.streams[handle] = None
        return OK, handle

    def cudaStreamDestroy(self, stream: int) -> tuple[Error]:
        del self.streams[stream]
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Error]:
        return (OK if self.streams[stream] is None else Error.cudaErrorInvalidValue,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Error]:
        self.streams[stream] = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Error, int]:
        graph = self._handle()
        noted, self.streams[stream] = self.streams[stream], None
        assert noted is not None
        self.graphs[graph] = noted
        return OK, graph

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Error, int]:
        executable = self._handle()
        self.graphs[executable] = self.graphs[graph]
        return OK, executable

    def cudaGraphDestroy(self, graph: int) -> tuple[Error]:
        del self.graphs[graph]
        return (OK,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[Error]:
        self.launches += 1
        for work in self.graphs[executable]:
            self.enqueue(stream, work)
        return (OK,)


class Context:
    """Runs a network from and to the addresses that it was given."""

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()

    def set_device_memory(self, address: int, size: int) -> None:
        self.engine.cuda.view(address, size)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        return index == 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return 1 <= shape[0] <= self.engine.limit

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if self.engine.cuda.streams[stream] is not None and not self.engine.capturable:
            return False
        self.engine.cuda.enqueue(stream, self._execute)
        return True

    def _execute(self) -> None:
        cuda = self.engine.cuda
        size = int(np.prod(self.shape))
        images = np.frombuffer(cuda.view(self.addresses["images"], size), np.uint8).reshape(self.shape)
        names = ("scores", "boxes")
        for name, found in zip(names, self.engine.session.run(names, {"images": images}), strict=True):
            cuda.view(self.addresses[name], found.nbytes)[:] = found.tobytes()


class Engine:
    device_memory_size_v2 = 1000
    num_io_tensors = 3

    def __init__(self, cuda: Cuda, model: bytes, limit: int, capturable: bool) -> None:
        self.cuda, self.limit, self.capturable = cuda, limit, capturable
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        nodes = (*self.session.get_inputs(), *self.session.get_outputs())
        self.nodes: dict[str, Any] = {node.name: node for node in nodes}

    def get_tensor_name(self, index: int) -> str:
        return list(self.nodes)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self.nodes[name].shape[1:])

    def get_tensor_dtype(self, name: str) -> str:
        kind: str = self.nodes[name].type
        return kind

    def create_execution_context(self, strategy: str) -> Context:
        assert strategy == "user managed"
        return Context(self)


class TensorRt(ModuleType):
    """`tensorrt`: a plan is the number of images that it takes, and the model file."""

    __version__ = "10.imitated"
    ICudaEngine = Engine
    IExecutionContext = Context
    INetworkDefinition = IBuilderConfig = object
    DataType = SimpleNamespace(UINT8="tensor(uint8)", FLOAT="tensor(float)")
    BuilderFlag = SimpleNamespace(TF32="tf32")
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=0)
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    def __init__(self, cuda: Cuda, capturable: bool) -> None:
        super().__init__("tensorrt")
        self.cuda, self.capturable = cuda, capturable
        self.builds = 0

    def nptype(self, kind: str) -> type[np.generic]:
        kinds: dict[str, type[np.generic]] = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
        return kinds[kind]

    def Runtime(self, logger: object) -> object:
        return SimpleNamespace(deserialize_cuda_engine=self._load)

    def _load(self, plan: bytes) -> Engine | None:
        return Engine(self.cuda, plan[1:], plan[0], self.capturable) if plan else None

    def OnnxParser(self, network: Any, logger: object) -> object:
        def parse(model: bytes) -> bool:
            try:
                session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            except Exception:
                return False
            network.model, network.images = model, session.get_inputs()[0]
            return True

        return SimpleNamespace(parse=parse, num_errors=1, get_error=lambda _: SimpleNamespace(desc=lambda: "no model"))

    def Builder(self, logger: object) -> object:
        network = SimpleNamespace()
        network.get_input = lambda _: network.images

        def set_shape(*shapes: object) -> None:
            network.shapes = shapes

        return SimpleNamespace(
            create_network=lambda flags: network,
            create_builder_config=Config,
            create_optimization_profile=lambda: SimpleNamespace(set_shape=set_shape),
            build_serialized_network=self._build,
        )

    def _build(self, network: Any, config: "Config") -> bytes:
        assert config.cleared == ["tf32"]
        self.builds += 1
        _, smallest, best, largest = network.shapes
        assert smallest[0] == 1 <= best[0] <= largest[0]
        model: bytes = network.model
        return bytes([largest[0]]) + model


class Config:
    def __init__(self) -> None:
        self.cleared: list[str] = []
        self.timing = b""

    def clear_flag(self, flag: str) -> None:
        self.cleared.append(flag)

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        assert pool == "workspace"

    def add_optimization_profile(self, profile: object) -> int:
        return 0

    def create_timing_cache(self, kept: bytes) -> bytes:
        return kept

    def set_timing_cache(self, timing: bytes, ignore_mismatch: bool) -> bool:
        self.timing = timing
        return True

    def get_timing_cache(self) -> object:
        return SimpleNamespace(serialize=lambda: self.timing + b"!")


@contextmanager
def imitated_gpu(capturable: bool = True) -> Iterator[TensorRt]:
    """While it is entered, `tensorrt` and `cuda` are these."""
    cuda = Cuda()
    tensorrt = TensorRt(cuda, capturable)
    bindings = ModuleType("cuda.bindings")
    nvml = SimpleNamespace(init_v2=lambda: None, shutdown=lambda: None, system_get_driver_version=lambda: "580.1")
    nvml.NvmlError = OSError
    bindings.__dict__.update(runtime=cuda, nvml=nvml)
    ours = [f"damoserve_server.engines.{name}" for name in ("cuda", "tensorrt", "tensorrt_plan")]
    with pytest.MonkeyPatch.context() as patch:
        for name, module in {"tensorrt": tensorrt, "cuda": ModuleType("cuda"), "cuda.bindings": bindings}.items():
            patch.setitem(sys.modules, name, module)
        for name in ours:
            patch.delitem(sys.modules, name, raising=False)
        yield tensorrt
        for name in ours:
            sys.modules.pop(name, None)
