"""The protocol of an engine, which runs a network. Each runtime has a file of its own, the only one that imports it.

EngineError          the runtime cannot use the model, or the model is not what its manifest says
├── EngineMissing    the runtime that the profile needs is not there; the message names no path and may be shown
└── EngineWrong      it runs, but computes something else than its manifest promises
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles.manifest import Manifest
from damoserve_profiles.runtimes import EngineName

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"

Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Scores `[N, K, C]` and boxes `[N, K, 4]`, x_min, y_min, x_max, y_max in pixels of the network's input, unclipped."""


class EngineError(Exception):
    """Raised when the runtime cannot use the model, or the model is not what its manifest says."""


class EngineMissing(EngineError):
    """Raised when the runtime of a profile is not installed, or ruled out by a setting; the message says what to do."""


class EngineWrong(EngineError):
    """Raised when an engine does not find in the golden image what the profile found when it was built."""


class Engine(Protocol):
    """One loaded profile, for one thread at a time."""

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Computes a batch, contiguous `[N, height, width, 3]`, N up to the largest; outputs hold until the next run.

        Raises EngineError.
        """


@runtime_checkable
class Closable(Protocol):
    """An engine that holds more than what Python frees with the last reference to it."""

    def close(self) -> None:
        """Frees what it holds. Call when nothing runs and no outputs are in use; more than once does no harm."""


@runtime_checkable
class Interruptible(Protocol):
    """An engine whose run another thread can end. The methods return at once."""

    @property
    def interruptible(self) -> bool:
        """True if a run can be ended on the device of this engine; else the methods are not to be used."""

    def interrupt(self) -> None:
        """Makes the run that goes on, and every later one until `resume`, raise within milliseconds or finish."""

    def resume(self) -> None:
        """Lets the engine run again. Call when nothing runs."""


def close_engine(engine: Engine) -> None:
    """Closes an engine, if it has something to close."""
    if isinstance(engine, Closable):
        engine.close()


def check_batch(images: NDArray[np.uint8], limit: int) -> None:
    """Checks the number of images. Raises EngineError: too many would be written over what lies behind the buffer."""
    if not 0 < len(images) <= limit:
        raise EngineError(f"a batch of {len(images)} images in an engine for 1 to {limit}")


@dataclass(frozen=True)
class GpuOptions:
    """Settings by which an engine uses a GPU."""

    device: int = 0
    """Number of the device."""
    cache: Path | None = None
    """Folder where built engines are kept; for None they are built at every start."""
    memory_bytes: int | None = None
    """Most bytes of one engine's arena in ONNX Runtime, or scratch memory in TensorRT; None for all the device has."""


@dataclass(frozen=True)
class EngineOptions:
    """Settings by which an engine uses the machine."""

    max_batch_size: int
    """Most images in a batch."""
    threads: int = 1
    """Number of threads that compute one batch."""
    providers: tuple[str, ...] = (CPU_PROVIDER,)
    """Execution providers of ONNX Runtime, in the order of preference."""
    engine: EngineName | None = None
    """Runtime for every profile; None for the one that each manifest prefers."""
    gpu: GpuOptions = GpuOptions()

    @property
    def on_gpu(self) -> bool:
        """True if the operator means the server to compute on a GPU."""
        return self.engine == "tensorrt" or bool({CUDA_PROVIDER, TENSORRT_PROVIDER} & set(self.providers))


EngineLoader = Callable[[bytes, Manifest, EngineOptions], Engine]
"""Function that makes an engine of the bytes of a model file, and raises EngineError."""
