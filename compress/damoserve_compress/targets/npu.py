"""Neural processing units: one image, fixed shapes, few operators, symmetric 8 bits."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from damoserve_compress.export import ROUNDING, Tolerance, make_graph
from damoserve_compress.measure.evaluate import Detector
from damoserve_compress.measure.runtime import ONNX_RUNTIME, Runtime, open_session
from damoserve_compress.network import Network, fuse
from damoserve_compress.network.head import make_priors
from damoserve_compress.network.reparameterise import fold_scales, stem_over_pixels
from damoserve_compress.quantise import Images, QuantisationReport
from damoserve_compress.quantise.quantise import Evaluate
from damoserve_compress.targets.operators import (
    AllowList,
    Rule,
    anything,
    check_operators,
    convolution,
    last_axis,
    nearest_resize,
    pooling,
)
from damoserve_compress.targets.replace import SMALL_WINDOW, replace_silu, split_pooling, upsample_by_convolution
from damoserve_compress.targets.symmetric import Layout, quantise_symmetric
from damoserve_profiles.imaging import Size
from damoserve_profiles.maps import BOX_MAPS, CLASS_MAPS, STRIDES, decode_maps
from damoserve_profiles.recipe import Export, Quantise

LAYOUT: Final = Layout(
    ("Add", "Concat", "Conv", "ConvTranspose", "HardSwish", "MaxPool", "Mul", "Resize", "Sigmoid"),
    outputs=True,
    biases=True,
)

_EVERYWHERE: Final[Mapping[str, Rule]] = MappingProxyType(
    dict.fromkeys(("Add", "Cast", "Concat", "DequantizeLinear", "HardSwish", "Mul", "QuantizeLinear"), anything)
    | dict.fromkeys(("Relu", "Reshape", "Sigmoid", "Transpose"), anything)
    | {
        "Conv": convolution(kernel=7, stride=2),
        "ConvTranspose": convolution(kernel=2, stride=2),
        "MaxPool": pooling(SMALL_WINDOW),
        "Resize": nearest_resize,
    }
)
INTEGER_NPU: Final = AllowList("an NPU", range(13, 24), _EVERYWHERE)
"""The operators that compilers of NPUs agree on, kept narrow: the limits are those of the strictest found documented
(shapes and sizes: Arm's Vela for Ethos-U, which takes batches of one, at most four dimensions of at most 65535)."""
FLOAT_NPU: Final = AllowList(
    "an NPU with float units",
    INTEGER_NPU.opsets,
    MappingProxyType({**_EVERYWHERE, "ReduceSum": last_axis, "Softmax": last_axis}),
)
"""The operators of `INTEGER_NPU`, and the two more that decoding boxes takes."""


class NpuNetwork(nn.Module):
    """The deploy form as an NPU takes it.

    Takes one image uint8 `[1, H, W, 3]` RGB. With the tail `host` it gives the class maps, then the box maps of the
    three levels (`damoserve_profiles.maps`); with `all` scores `[1, A, C]` and boxes `[1, A, 4]` of every anchor, as
    the network does.
    """

    corners: Tensor
    steps: Tensor
    bins: Tensor

    def __init__(self, network: Network, size: Size, options: Export) -> None:
        super().__init__()
        self.network = fold_scales(stem_over_pixels(fuse(network)))
        self.decoded = options.tail == "all"
        points, strides = make_priors([torch.empty(1, 1, size.height // step, size.width // step) for step in STRIDES])
        self.register_buffer("corners", points.repeat(1, 2))
        self.register_buffer("steps", strides[:, None] * torch.tensor([-1.0, -1.0, 1.0, 1.0]))
        self.register_buffer("bins", torch.arange(network.reg_max + 1, dtype=torch.float32))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.network.neck(self.network.backbone(images.permute(0, 3, 1, 2).float()))
        head = self.network.head
        class_maps = [conv(level) for conv, level in zip(head.gfl_cls, features, strict=True)]
        box_maps = [conv(level) for conv, level in zip(head.gfl_reg, features, strict=True)]
        return self._decode(class_maps, box_maps) if self.decoded else (*class_maps, *box_maps)

    def _decode(self, class_maps: list[Tensor], box_maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Decodes by plain operators over at most four dimensions, the grid being a constant."""
        scores = torch.cat([level.flatten(2) for level in class_maps], dim=2).sigmoid().transpose(1, 2)
        logits = torch.cat([level.reshape(1, 4, len(self.bins), -1) for level in box_maps], dim=3)
        distances = (logits.transpose(2, 3).softmax(dim=3) * self.bins).sum(dim=3)
        return scores, distances.transpose(1, 2) * self.steps + self.corners


class Npu:
    """Graphs of fixed shape for one image, out of few operators; in 8 bits signed without zero points.

    The stem is one stride-2 convolution, SiLU a sigmoid and a product, pooling has 3x3 windows, nothing is sorted, and
    concatenated maps are on one scale. Exact, unless the recipe asks for another activation. By default the graph ends
    at the head's convolutions, and the host decodes their maps.
    """

    tolerance: Final[Tolerance] = ROUNDING

    def adapt(self, network: Network, options: Export) -> Network:
        return replace_silu(network, options.silu)

    def export(self, network: Network, size: Size, options: Export, path: Path) -> None:
        outputs = ("scores", "boxes") if options.tail == "all" else (*CLASS_MAPS, *BOX_MAPS)
        model = make_graph(NpuNetwork(network, size, options), size, outputs, options.opset, dynamic=False)
        split_pooling(model)
        if options.upsample == "transposed_convolution":
            upsample_by_convolution(model)
        onnx.checker.check_model(model, full_check=True)
        check_operators(model, _allowed(model))
        onnx.save(model, path)

    def quantise(
        self, source: Path, target: Path, images: Images, options: Quantise, evaluate: Evaluate | None = None
    ) -> QuantisationReport:
        return quantise_symmetric(source, target, images, options, LAYOUT)

    def finish(self, source: Path, target: Path) -> None:
        model = onnx.load(source)
        check_operators(model, _allowed(model))
        if source != target:
            shutil.copyfile(source, target)

    def detector(self, path: Path, options: Export, runtime: Runtime = ONNX_RUNTIME) -> Detector:
        session = open_session(path)
        names = [output.name for output in session.get_outputs()]
        levels = len(STRIDES)

        def detect_one(image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            outputs = session.run(names, {"images": image})
            if len(outputs) == 2:
                return outputs[0], outputs[1]
            size = Size(image.shape[2], image.shape[1])
            return decode_maps(outputs[:levels], outputs[levels:], size, options.candidates)

        def detect(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            answers = [detect_one(images[row : row + 1]) for row in range(len(images))]
            scores, boxes = (np.concatenate(parts) for parts in zip(*answers, strict=True))
            return scores, boxes

        return detect


def _allowed(model: ModelProto) -> AllowList:
    return FLOAT_NPU if len(model.graph.output) == 2 else INTEGER_NPU
