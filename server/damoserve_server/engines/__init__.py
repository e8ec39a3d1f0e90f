"""What runs a network. Each runtime has a file of its own, the only one that imports it.

EngineError          the runtime cannot use the model, or the model is not what its manifest says
├── EngineMissing    the runtime that the profile needs is not there; the message names no path and may be shown
└── EngineWrong      it runs, but computes something else than its manifest promises
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles.manifest import Manifest
from damoserve_profiles.runtimes import EngineName

CPU_PROVIDER = "CPUExecutionProvider"

Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Scores `[N, K, C]` and boxes `[N, K, 4]`, x_min, y_min, x_max, y_max in pixels of the network's input, unclipped."""


class EngineError(Exception):
    """The runtime cannot use the model, or the model is not what its manifest says."""


class EngineMissing(EngineError):
    """The runtime that the profile needs is not installed, or ruled out by a setting; the message says what to do."""


class EngineWrong(EngineError):
    """The engine does not find in the golden image what the profile found when it was built."""


class Engine(Protocol):
    """One loaded profile. Used by one thread at a time."""

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Takes contiguous `[N, height, width, 3]`, N up to the largest batch. The outputs hold until the next run."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine may use the machine."""

    max_batch_size: int
    threads: int = 1
    providers: tuple[str, ...] = (CPU_PROVIDER,)
    engine: EngineName | None = None
    """None: the one that the manifest prefers."""


EngineLoader = Callable[[bytes, Manifest, EngineOptions], Engine]
"""Makes an engine of the bytes of a model file. Raises EngineError."""
