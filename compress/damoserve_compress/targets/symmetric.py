"""8 bits as TensorRT and NPUs take them: signed, without zero points, concatenated tensors on one scale.

Not for processors: no 8-bit kernel of ONNX Runtime on x86 takes signed activations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
from onnx import ModelProto
from onnxruntime.quantization import QuantType

from damoserve_compress.measure.timing import instruction_set
from damoserve_compress.quantise import Images, QuantisationReport
from damoserve_compress.quantise.equalise import equalise
from damoserve_compress.quantise.graph import Graph, drop_unused
from damoserve_compress.quantise.histogram import Histogram
from damoserve_compress.quantise.observe import collect
from damoserve_compress.quantise.ranges import Range, choose_range, expected_error
from damoserve_compress.quantise.report import TensorRange
from damoserve_compress.quantise.write import quantise_with_ranges, tensors_data
from damoserve_profiles.recipe import Quantise

TIED: Final = ("Concat", "ConvTranspose")
"""Operators that only move values about: what they read and write is on one scale, so that they may do it in 8 bits."""
SMALLEST: Final = 127 * 2.0**-14
"""The smallest range of activations: so their scales are normal numbers in float16 too."""
PIXELS: Final = 255.0


@dataclass(frozen=True)
class Layout:
    """The places where a target wants quantisers."""

    operators: tuple[str, ...]
    """The operators that run in 8 bits."""
    outputs: bool
    """True for quantisers on what these operators give, too, unless only a ReLU reads it; else on what they read."""
    biases: bool
    """True for quantisers on biases, in 32 bits on the scale of input times weight."""


def quantise_symmetric(
    source: Path, target: Path, images: Images, options: Quantise, layout: Layout
) -> QuantisationReport:
    """Writes the 8-bit form of a float graph: activations and weights QInt8, weights per channel.

    `images()` gives the calibration images, uint8 `[H, W, 3]`. What is behind the head's convolutions stays float. The
    same inputs give the same bytes. Raises QuantisationError.
    """
    model = onnx.load(source)
    graph = Graph(equalise(model) if options.equalise else model)
    histograms, calibration = collect(graph, images, options.calibration_images)
    ranges = _ranges(graph, histograms, options)
    _write(graph, ranges, target, layout)
    return QuantisationReport(
        calibration=calibration,
        instruction_set=instruction_set(),
        reduce_range=False,
        operators="all" if layout.outputs else "conv+concat",
        operator_times=(),
        tensors=tuple(TensorRange(name, found.low, found.high, found.method, found.error) for name, found in ranges),
        bias_shifts={},
        sensitivity=(),
        float_ap=None,
        ap=None,
        decisions=(),
        float_groups=(),
    )


def _ranges(graph: Graph, histograms: Mapping[str, Histogram], options: Quantise) -> list[tuple[str, Range]]:
    """Symmetric ranges; of tensors that are tied to each other the widest."""
    # As without symmetry: few anchors hold an object, and what suits the empty ones would clip their scores.
    heads = {head.output[0] for head in graph.heads}
    found = {
        name: choose_range(histogram, "minmax" if name in heads else options.ranges, options.percentile)
        for name, histogram in histograms.items()
    }
    widest: dict[str, float] = {}
    ties = tied(graph)
    for name, chosen in found.items():
        key = ties.get(name, name)
        widest[key] = max(widest.get(key, SMALLEST), -chosen.low, chosen.high)
    bounds = {name: widest[ties.get(name, name)] for name in found}
    return [
        (name, Range(-bound, bound, found[name].method, float(expected_error(histograms[name], -bound, bound))))
        for name, bound in bounds.items()
    ]


def tied(graph: Graph) -> dict[str, str]:
    """Maps each tensor that shares its scale with others to the one that stands for all of them."""
    owners: dict[str, str] = {}

    def owner(name: str) -> str:
        while name != owners.setdefault(name, name):
            name = owners[name]
        return name

    for node in graph.model.graph.node:
        if node.op_type in TIED:
            moved = [graph.sources[name] for name in (*node.input, *node.output) if name in graph.sources]
            for name in moved[1:]:
                owners[owner(name)] = owner(moved[0])
    return {name: owner(name) for name in owners}


def _write(graph: Graph, ranges: list[tuple[str, Range]], target: Path, layout: Layout) -> None:
    bounds = {name: (found.low, found.high) for name, found in ranges} | {graph.cast.output[0]: (-PIXELS, PIXELS)}
    quantised = quantise_with_ranges(
        graph.model,
        tensors_data(graph, bounds),
        target,
        op_types_to_quantize=list(layout.operators),
        activation_type=QuantType.QInt8,
        nodes_to_exclude=sorted(graph.behind),
        extra_options={
            "ActivationSymmetric": True,
            "QuantizeBias": layout.biases,
            "OpTypesToExcludeOutputQuantization": [] if layout.outputs else list(layout.operators),
        },
    )
    _release_relu(quantised)
    onnx.checker.check_model(quantised, full_check=True)
    onnx.save(quantised, target)


def _release_relu(model: ModelProto) -> None:
    """Drops quantisers right before a ReLU, which is done in the same step as what comes before it."""
    producers = {output: node for node in model.graph.node for output in node.output}
    for relu in [node for node in model.graph.node if node.op_type == "Relu"]:
        dequantise = producers[relu.input[0]]
        if dequantise.op_type == "DequantizeLinear":
            relu.input[0] = producers[dequantise.input[0]].input[0]
    for operator in ("DequantizeLinear", "QuantizeLinear"):
        read = {name for node in model.graph.node for name in node.input} | {out.name for out in model.graph.output}
        for node in [node for node in model.graph.node if node.op_type == operator and node.output[0] not in read]:
            model.graph.node.remove(node)
    drop_unused(model)
