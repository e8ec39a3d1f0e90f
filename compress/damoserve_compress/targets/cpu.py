"""Processors: what ONNX Runtime and OpenVINO fuse into vector instructions for 8 bits."""

from pathlib import Path
from typing import Final

from damoserve_compress.export import ROUNDING, Tolerance, export_onnx
from damoserve_compress.measure.evaluate import Detector
from damoserve_compress.measure.runtime import ONNX_RUNTIME, Runtime, open_detector
from damoserve_compress.network import Network
from damoserve_compress.quantise import Images, QuantisationReport, quantise_onnx
from damoserve_compress.quantise.quantise import Evaluate
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import Export, Quantise


class Cpu:
    """Graphs for any batch size; in 8 bits unsigned activations with zero points, signed weights per channel.

    This is the one combination that ONNX Runtime fuses into 8-bit kernels on x86 (VNNI, AMX); with signed activations
    nothing fuses, and the graph is slower than in float.
    """

    tolerance: Final[Tolerance] = ROUNDING
    finish: Final = None

    def adapt(self, network: Network, options: Export) -> Network:
        return network

    def export(self, network: Network, size: Size, options: Export, path: Path) -> None:
        export_onnx(network, size, options, path)

    def quantise(
        self, source: Path, target: Path, images: Images, options: Quantise, evaluate: Evaluate | None = None
    ) -> QuantisationReport:
        return quantise_onnx(source, target, images, options, evaluate)

    def detector(self, path: Path, options: Export, runtime: Runtime = ONNX_RUNTIME) -> Detector:
        return open_detector(path, runtime)
