"""Cross-layer equalisation: channels of a tensor between two convolutions get like ranges, at no change of the output.

Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV 2019, section 4.1. For a
function with f(s x) = s f(x) for s > 0, such as ReLU, output channel i of the first convolution may be divided by any
s_i and input channel i of the second multiplied by it. With s_i = sqrt(r1_i r2_i) / r2_i, where r are the greatest
weights of channel i in either, both then have the greatest weight sqrt(r1_i r2_i).
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from damoserve_compress.quantise.graph import Graph, attributes

ROUNDS = 20
"""A convolution may be the second of one pair and the first of the next: one is undone a little by the other."""
SETTLED = 1e-3


def equalise(model: ModelProto) -> ModelProto:
    """A copy of a float graph with all pairs equalised that a ReLU alone lies between."""
    equalised = ModelProto()
    equalised.CopyFrom(model)
    graph = Graph(equalised)
    pairs = list(_pairs(graph))
    values = {name: graph.weights(name).copy() for pair in pairs for node in pair for name in node.input[1:]}
    for _ in range(ROUNDS):
        changes = [_equalise_pair(values, *pair) for pair in pairs]
        if max(changes, default=0.0) < SETTLED:
            break
    for name, value in values.items():
        graph.initialisers[name].CopyFrom(numpy_helper.from_array(value, name))
    return equalised


def _pairs(graph: Graph) -> Iterator[tuple[NodeProto, NodeProto]]:
    """Two convolutions each, whose constants nothing else uses, and the ReLU's input and output neither."""
    uses = Counter(name for node in graph.model.graph.node for name in node.input)
    uses.update(output.name for output in graph.model.graph.output)
    for first in graph.convolutions:
        for relu in graph.consumers[first.output[0]]:
            for second in graph.consumers[relu.output[0]]:
                fits = (relu.op_type, second.op_type, attributes(second).get("group", 1)) == ("Relu", "Conv", 1)
                shared = first.output[0], relu.output[0], *first.input[1:], *second.input[1:]
                if fits and all(uses[name] == 1 for name in shared):
                    yield first, second


def _equalise_pair(values: dict[str, NDArray[np.float32]], first: NodeProto, second: NodeProto) -> float:
    """Scales one pair; returns by how much, at most, a channel was."""
    before, after = values[first.input[1]], values[second.input[1]]
    ranges = np.abs(before).max((1, 2, 3)), np.abs(after).max((0, 2, 3))
    used = (ranges[0] > 0) & (ranges[1] > 0)
    scale = np.ones_like(ranges[0])
    scale[used] = np.sqrt(ranges[0][used] / ranges[1][used])
    before /= scale[:, None, None, None]
    after *= scale[None, :, None, None]
    if len(first.input) > 2:
        values[first.input[2]] /= scale
    return float(np.abs(scale - 1).max())
