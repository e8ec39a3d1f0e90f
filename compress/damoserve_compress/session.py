"""Exported graphs in ONNX Runtime, as the tools measure them."""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from damoserve_compress.evaluate import Detector


def open_session(path: Path, threads: int = 1, optimised: Path | None = None) -> onnxruntime.InferenceSession:
    """A CPU session; the graph as optimised is written to `optimised` if given."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Pools that spin while they wait would slow down the session that is being timed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def onnx_detector(path: Path, threads: int = 1) -> Detector:
    """The detector that an exported graph is."""
    session = open_session(path, threads)

    def detect(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        scores, boxes = session.run(["scores", "boxes"], {"images": images})
        return scores, boxes

    return detect
