"""Latency, measured so that it can be compared: runs interleaved, ratios of pairs, with their spread."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from damoserve_compress.measure.runtime import ONNX_RUNTIME, Runtime, open_detector
from damoserve_profiles.imaging import Size
from damoserve_profiles.manifest import Latency
from damoserve_profiles.runtimes import EngineName

INSTRUCTION_SETS = ("amx_int8", "avx512_vnni", "avx_vnni", "avx512f", "avx2", "asimddp")
"""The instruction sets that speed up 8-bit kernels, best first."""


@dataclass(frozen=True)
class Ratio:
    """A speed-up over a reference: median and quartiles over pairs of runs next to each other."""

    median: float
    lower: float
    upper: float


def interleave(
    runs: Sequence[Callable[[], object]],
    rounds: int,
    warm_up: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> NDArray[np.float64]:
    """Milliseconds `[rounds, len(runs)]`: every round times each run once, so that all share the machine's moods."""
    milliseconds = np.empty((rounds + warm_up, len(runs)))
    for row in milliseconds:
        for column, run in enumerate(runs):
            started = clock()
            run()
            row[column] = (clock() - started) * 1e3
    return milliseconds[warm_up:]


def time_models(
    models: Sequence[Path | tuple[Path, Runtime]], size: Size, rounds: int, threads: int = 1
) -> NDArray[np.float64]:
    """Milliseconds `[rounds, len(models)]` from one uint8 image tensor to the candidate boxes before suppression.

    A path alone is run in ONNX Runtime. Raises as `open_detector`.
    """
    image = np.random.default_rng(0).integers(0, 256, (1, size.height, size.width, 3), dtype=np.uint8)
    pairs = [model if isinstance(model, tuple) else (model, ONNX_RUNTIME) for model in models]
    return interleave([partial(open_detector(path, runtime, threads), image) for path, runtime in pairs], rounds)


def choose_engine(milliseconds: Mapping[EngineName, NDArray[np.float64]]) -> EngineName:
    """The engine that a profile is to be served in, from interleaved times `[rounds]` of each.

    Another than ONNX Runtime, which every server has, is chosen only where it was faster in at least three of four
    pairs of runs; of several such, the one with the greatest median ratio.
    """
    reference = milliseconds["onnxruntime"]
    ratios = {name: speed_up(np.stack([reference, times], 1), 1) for name, times in milliseconds.items()}
    faster = {name: ratio.median for name, ratio in ratios.items() if ratio.lower > 1}
    return max(faster, key=lambda name: faster[name], default="onnxruntime")


def speed_up(milliseconds: NDArray[np.float64], column: int, reference: int = 0) -> Ratio:
    """Speed of one column of `interleave`'s result against another."""
    lower, median, upper = np.percentile(milliseconds[:, reference] / milliseconds[:, column], (25, 50, 75))
    return Ratio(float(median), float(lower), float(upper))


def summarise(milliseconds: NDArray[np.float64], threads: int, runtime: Runtime = ONNX_RUNTIME) -> Latency:
    """The manifest's record of one column `[rounds]`."""
    return Latency(
        median_ms=round(float(np.median(milliseconds)), 3),
        p90_ms=round(float(np.percentile(milliseconds, 90)), 3),
        runs=len(milliseconds),
        threads=threads,
        cpu=cpu_name(),
        instruction_set=instruction_set(),
        runtime=runtime.version(),
    )


def cpu_name() -> str:
    """The processor's, as it calls itself."""
    return _cpu_field("model name") or platform.processor() or platform.machine()


def instruction_set() -> str:
    """The best of `INSTRUCTION_SETS` that this processor has, or the name of its architecture."""
    flags = (_cpu_field("flags") or _cpu_field("Features") or "").split()
    return next((name for name in INSTRUCTION_SETS if name in flags), platform.machine())


def _cpu_field(name: str) -> str | None:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    values = (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name)
    return next(values, None)
