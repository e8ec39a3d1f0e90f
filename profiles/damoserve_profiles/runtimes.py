"""Names of the runtimes that a profile can be run in, set up alike for those who measure and those who serve."""

import functools
import sys
from typing import Any, Final, Literal

CpuEngineName = Literal["onnxruntime", "openvino"]
EngineName = Literal[CpuEngineName, "tensorrt"]
Precision = Literal["bf16"]
"""Precision of float layers, computed from the same file: bfloat16 has 8 bits."""

OPENVINO_EXTRA: Final = "damoserve[openvino]"
GPU_EXTRA: Final = "damoserve[gpu]"


def silence_openvino() -> None:
    """Keeps openvino and nncf from sending usage statistics; call it before either is imported.

    OpenVINO sends them as soon as it is imported. Both do without where the package that sends them is not installed,
    and this makes it look so.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


@functools.cache
def openvino_core() -> Any:
    """Returns the process's one `openvino.Core`. Raises ImportError where OpenVINO is not installed.

    Each core gives the thread that first uses it a signal stack, which is unmapped with it: unless the last made is the
    first to go, in that same thread, the next signal that Python handles ends the process with a segmentation fault.
    """
    silence_openvino()
    import openvino

    return openvino.Core()


def openvino_properties(threads: int, precision: Precision | None) -> dict[str, str | int | bool]:
    """Returns OpenVINO's settings: one image at a time on `threads`, floats as in the file or in `precision`."""
    return {
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # Engines of the same process would be pinned to the same cores.
        "ENABLE_CPU_PINNING": False,
        # Left alone, OpenVINO computes float files in bfloat16 wherever the processor can.
        "INFERENCE_PRECISION_HINT": precision or "f32",
    }
