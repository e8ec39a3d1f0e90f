"""NVIDIA GPUs: strongly typed graphs for TensorRT, which takes the precision of every layer from the graph."""

from pathlib import Path
from typing import Final

import onnx

from damoserve_compress.export import Tolerance, export_onnx
from damoserve_compress.measure.evaluate import Detector
from damoserve_compress.measure.runtime import ONNX_RUNTIME, Runtime, onnx_detector
from damoserve_compress.network import Network
from damoserve_compress.quantise import Images, QuantisationReport
from damoserve_compress.quantise.quantise import Evaluate
from damoserve_compress.targets.half import to_half
from damoserve_compress.targets.symmetric import Layout, quantise_symmetric
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import Export, Quantise

# TensorRT fuses a convolution with the addition and activation behind it, and takes its input's and weights'
# quantisers into the kernel: others in between would break that up. Biases are added in float.
LAYOUT: Final = Layout(("Concat", "Conv", "MaxPool", "Resize"), outputs=False, biases=False)


class Gpu:
    """float16 up to the head's convolutions, float32 behind them; in 8 bits quantisers on what convolutions read.

    No zero points, and concatenated maps on one scale, so that TensorRT joins them without computing. All else is
    float16: float32 between 8-bit layers would cost more than they save.
    """

    # The trained T at 416 px differs by 0.006 and 0.28 px, others by less.
    tolerance: Final = Tolerance(score=0.02, box=1.0)

    def adapt(self, network: Network, options: Export) -> Network:
        return network

    def export(self, network: Network, size: Size, options: Export, path: Path) -> None:
        export_onnx(network, size, options, path)

    def quantise(
        self, source: Path, target: Path, images: Images, options: Quantise, evaluate: Evaluate | None = None
    ) -> QuantisationReport:
        return quantise_symmetric(source, target, images, options, LAYOUT)

    def finish(self, source: Path, target: Path) -> None:
        onnx.save(to_half(onnx.load(source)), target)

    def detector(self, path: Path, options: Export, runtime: Runtime = ONNX_RUNTIME) -> Detector:
        # The kernels that ONNX Runtime would fuse quantisers to take no float16 scales.
        return onnx_detector(path, fuse_quantisers=False)
