"""The runtimes that a profile can be run in, set up in one way for those who measure and for those who serve."""

import functools
import sys
from typing import Any, Final, Literal

CpuEngineName = Literal["onnxruntime", "openvino"]
EngineName = Literal[CpuEngineName, "tensorrt"]
Precision = Literal["bf16"]
"""Float layers are computed in bfloat16, 8 bits of precision, from the same file."""

OPENVINO_EXTRA: Final = "damoserve[openvino]"
GPU_EXTRA: Final = "damoserve[gpu]"


def silence_openvino() -> None:
    """Call before importing openvino or nncf: both send usage statistics, OpenVINO as soon as it is imported.

    They do without where the package that sends them is not installed, and this makes it look so.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


@functools.cache
def openvino_core() -> Any:
    """The process's one `openvino.Core`. Raises ImportError where OpenVINO is not installed.

    Each gives the thread that first uses it a signal stack, which is unmapped with it: unless the last made is the
    first to go, in that same thread, the next signal that Python handles ends the process with a segmentation fault.
    """
    silence_openvino()
    import openvino

    return openvino.Core()


def openvino_properties(threads: int, precision: Precision | None) -> dict[str, str | int | bool]:
    """What OpenVINO's CPU plugin is told: one image at a time on `threads`, floats as in the file or in `precision`."""
    return {
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # Engines of the same process would be pinned to the same cores.
        "ENABLE_CPU_PINNING": False,
        # Left alone, OpenVINO computes float files in bfloat16 wherever the processor can.
        "INFERENCE_PRECISION_HINT": precision or "f32",
    }
