"""OpenVINO, on the processor."""

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles.manifest import Manifest
from damoserve_profiles.runtimes import openvino_core, openvino_properties, silence_openvino
from damoserve_server.engines.engine import EngineError, EngineMissing, EngineOptions, Outputs, check_batch

silence_openvino()

import openvino  # noqa: E402

DEVICE = "CPU"


class OpenVinoEngine:
    """A network compiled for one image, with its outputs bound to buffers that are allocated once.

    The model takes `images` uint8 `[N, height, width, 3]` and gives `scores` float32 `[N, K, C]` and `boxes` float32
    `[N, K, 4]`. A batch is computed image by image: compiled for any N, the bundled 8-bit network takes a quarter more
    time for one image, and compiled once more for each N a batch would gain 7 %, at 30 MB each.
    """

    def __init__(self, model: bytes, manifest: Manifest, options: EngineOptions) -> None:
        """Compiles the model, and checks it against its manifest. Raises EngineError."""
        _check_precision(manifest)
        height, width = manifest.input.height, manifest.input.width
        try:
            network = openvino_core().read_model(model)
            actual = _describe(network.inputs)
            # Only the first axis: the shape of the others is the model's own, and compared with the manifest's.
            for port in network.inputs:
                network.reshape({port: [1, *port.partial_shape[1:]]})
            actual |= _describe(network.outputs)
        except Exception as error:  # RuntimeError for nearly everything
            raise EngineError(f"OpenVINO refused the model: {error}") from error
        expected = {
            "images": ("u8", (height, width, 3)),
            "scores": ("f32", (manifest.candidates, len(manifest.labels))),
            "boxes": ("f32", (manifest.candidates, 4)),
        }
        if actual != expected:
            raise EngineError(f"the model has {actual}; its manifest promises {expected}")
        properties = openvino_properties(options.threads, manifest.precision)
        try:
            self._request = openvino_core().compile_model(network, DEVICE, properties).create_infer_request()
        except Exception as error:
            raise EngineError(f"OpenVINO could not compile the model: {error}") from error
        self._scores, self._boxes = (
            np.empty((options.max_batch_size, *expected[name][1]), np.float32) for name in ("scores", "boxes")
        )
        self._bound = [
            {"scores": _shared(self._scores[row : row + 1]), "boxes": _shared(self._boxes[row : row + 1])}
            for row in range(options.max_batch_size)
        ]

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        check_batch(images, len(self._bound))
        for row in range(len(images)):
            self._request.set_tensor("images", _shared(images[row : row + 1]))
            for name, tensor in self._bound[row].items():
                self._request.set_tensor(name, tensor)
            self._request.infer(share_outputs=True)
        return self._scores[: len(images)], self._boxes[: len(images)]


def _check_precision(manifest: Manifest) -> None:
    """Checks that the processor computes in the precision of a profile.

    Raises EngineMissing where it would only imitate that, or silently take another.
    """
    precision = manifest.precision
    if precision is None:
        return
    if precision.upper() not in openvino_core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
        raise EngineMissing(f"this processor does not compute in {precision}; serve another profile")


def _describe(ports: list[openvino.Output]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Returns type and shape, without the batch axis, of each port; -1 for an axis of any length."""
    return {
        port.any_name: (
            port.element_type.get_type_name(),
            tuple(axis.get_length() if axis.is_static else -1 for axis in list(port.partial_shape)[1:]),
        )
        for port in ports
    }


def _shared(array: NDArray[np.generic]) -> openvino.Tensor:
    """Wraps the array itself as a tensor. It must be contiguous, which a row of a contiguous one is."""
    return openvino.Tensor(array, shared_memory=True)
