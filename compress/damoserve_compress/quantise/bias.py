"""Bias correction: what quantising a convolution shifts its output by, on average, is put into its bias.

Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, section 4.2, with the
means taken from images instead of batch norms.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from torch.nn import functional

from damoserve_compress.quantise.graph import Graph, attributes
from damoserve_compress.quantise.observe import observe

Array = NDArray[np.float32]


def output_shifts(graph: Graph, quantised: ModelProto, images: Iterable[NDArray[np.uint8]]) -> dict[str, Array]:
    """Measures by how much 8 bits shift each convolution's output `[channels]`: its float mean less its 8-bit mean.

    A convolution is linear, so the mean of its output is its output for the mean input: kept are, for each input, one
    mean map of its values and one of them quantised. Either convolution is given the float graph's activations, so that
    every shift is only what its own weights and input cause, and all are corrected at once.
    """
    eight_bit = {node.name: node for node in quantised.graph.node if node.op_type == "Conv"}
    scales = _Scales(quantised)
    steps = {
        node.input[0]: scales.scale_and_zero(eight_bit[node.name].input[0])
        for node in graph.convolutions
        if scales.holds(eight_bit[node.name].input[1])
    }
    means = _mean_maps(graph.model, steps, images)
    return {
        node.name: _shift(graph, node, scales.values(eight_bit[node.name].input[1]), means[node.input[0]])
        for node in graph.convolutions
        if scales.holds(eight_bit[node.name].input[1])
    }


def _mean_maps(
    model: ModelProto, steps: Mapping[str, tuple[Array, NDArray[np.generic]]], images: Iterable[NDArray[np.uint8]]
) -> dict[str, tuple[Array, Array]]:
    """Averages each tensor's values, and its quantised values, over the images: `[1, C, H, W]` each."""
    sums: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    count = 0
    for seen in observe(model, sorted(steps), images):
        count += 1
        for name, values in seen.items():
            scale, zero = steps[name]
            rounded = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
            if name not in sums:
                sums[name] = np.zeros(values.shape), np.zeros(values.shape)
            exact, quantised = sums[name]
            exact += values
            quantised += rounded
    return {name: _means(totals, count) for name, totals in sums.items()}


def _means(totals: tuple[NDArray[np.float64], NDArray[np.float64]], count: int) -> tuple[Array, Array]:
    return (totals[0] / count).astype(np.float32), (totals[1] / count).astype(np.float32)


def _shift(graph: Graph, node: NodeProto, weights: Array, means: tuple[Array, Array]) -> Array:
    exact, rounded = (
        _convolve(node, values, kernel)
        for values, kernel in zip(means, (graph.weights(node.input[1]), weights), strict=True)
    )
    return np.asarray((exact - rounded).mean((0, 2, 3)), np.float32)


def _convolve(node: NodeProto, values: Array, weights: Array) -> NDArray[np.float64]:
    found = attributes(node)
    top, left, bottom, right = found.get("pads", [0, 0, 0, 0])
    padded = functional.pad(torch.from_numpy(values).double(), (left, right, top, bottom))
    out: NDArray[np.float64] = functional.conv2d(
        padded,
        torch.from_numpy(np.array(weights)).double(),
        stride=tuple(found.get("strides", [1, 1])),
        dilation=tuple(found.get("dilations", [1, 1])),
        groups=found.get("group", 1),
    ).numpy()
    return out


class _Scales:
    """The constants behind the DequantizeLinear nodes of an 8-bit graph."""

    def __init__(self, model: ModelProto) -> None:
        self._nodes = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}

    def holds(self, name: str) -> bool:
        return name in self._nodes

    def scale_and_zero(self, name: str) -> tuple[Array, NDArray[np.generic]]:
        """Scale and zero point of a dequantised tensor."""
        scale, zero = (numpy_helper.to_array(self._constants[item]) for item in self._nodes[name].input[1:3])
        return scale, zero.astype(np.float32)

    def values(self, name: str) -> Array:
        """Dequantised weights; their scales are per output channel."""
        scale, zero = (part.reshape(-1, 1, 1, 1) for part in self.scale_and_zero(name))
        stored = numpy_helper.to_array(self._constants[self._nodes[name].input[0]])
        return np.asarray((stored - zero) * scale, np.float32)
