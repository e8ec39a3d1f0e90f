"""Exported graphs in the runtimes that serve them, as the tools measure them.

RuntimeMissing   a graph is to run in a runtime that is not installed, or does not load
"""

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from damoserve_compress.measure.evaluate import Detector
from damoserve_profiles.runtimes import OPENVINO_EXTRA, EngineName, Precision, openvino_core, openvino_properties


class RuntimeMissing(ValueError):
    """The runtime cannot be had; the message says what to install, or why it does not load."""


@dataclass(frozen=True)
class Runtime:
    """The engine that a graph runs in, and its precision."""

    engine: EngineName = "onnxruntime"
    precision: Precision | None = None
    """The precision of float layers, if not the file's; only OpenVINO offers it."""

    def version(self) -> str:
        """Name and version as manifests record them, such as `onnxruntime 1.32.0`."""
        if self.engine == "openvino":
            return f"openvino {importlib.metadata.version('openvino')}"
        return f"onnxruntime {onnxruntime.__version__}"


ONNX_RUNTIME: Final = Runtime()


def installed_engines() -> tuple[EngineName, ...]:
    """ONNX Runtime first, which is always there."""
    return ("onnxruntime", "openvino") if importlib.util.find_spec("openvino") else ("onnxruntime",)


def check_runtime(runtime: Runtime) -> None:
    """Raises RuntimeMissing, and ValueError where the runtime does not compute in the precision here."""
    if runtime.engine == "openvino":
        _load_openvino()
        precision = runtime.precision
        capabilities = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") if precision else ()
        if precision is not None and precision.upper() not in capabilities:
            raise ValueError(f"this processor does not compute in {precision}")
    elif runtime.precision is not None:
        raise ValueError(f"ONNX Runtime does not compute a float32 graph in {runtime.precision}; OpenVINO does")


def _load_openvino() -> Any:
    if "openvino" not in installed_engines():
        raise RuntimeMissing(f"OpenVINO is not installed: install {OPENVINO_EXTRA}")
    try:
        openvino_core()
        import openvino
    except ImportError as error:
        raise RuntimeMissing(f"OpenVINO is installed, but does not load: {error}") from error
    return openvino


def open_session(
    path: Path, threads: int = 1, optimised: Path | None = None, fuse_quantisers: bool = True
) -> onnxruntime.InferenceSession:
    """A CPU session; the graph as optimised is written to `optimised` if given.

    Without `fuse_quantisers` the graph is computed as it is written, in float between its quantisers.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Pools that spin while they wait would slow down the session that is being timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not fuse_quantisers:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def open_detector(path: Path, runtime: Runtime, threads: int = 1) -> Detector:
    """The detector that a graph is in `runtime`. Raises as `check_runtime`."""
    if runtime.engine == "openvino":
        return openvino_detector(path, threads, runtime.precision)
    check_runtime(runtime)
    return onnx_detector(path, threads)


def onnx_detector(path: Path, threads: int = 1, fuse_quantisers: bool = True) -> Detector:
    """The detector that an exported graph is."""
    session = open_session(path, threads, fuse_quantisers=fuse_quantisers)

    def detect(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        scores, boxes = session.run(["scores", "boxes"], {"images": images})
        return scores, boxes

    return detect


def openvino_detector(path: Path, threads: int = 1, precision: Precision | None = None) -> Detector:
    """The detector that a graph, ONNX or OpenVINO's own, is in OpenVINO: compiled for one image, as it is served.

    Raises as `check_runtime`.
    """
    check_runtime(Runtime("openvino", precision))
    core, openvino = openvino_core(), _load_openvino()
    network = core.read_model(path)
    network.reshape([1, *network.input("images").partial_shape[1:]])
    request = core.compile_model(network, "CPU", openvino_properties(threads, precision)).create_infer_request()

    def detect(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        answers = []
        for row in range(len(images)):
            request.set_tensor("images", openvino.Tensor(images[row : row + 1], shared_memory=True))
            request.infer(share_outputs=True)
            answers.append([request.get_tensor(name).data.copy() for name in ("scores", "boxes")])
        scores, boxes = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        return scores, boxes

    return detect
