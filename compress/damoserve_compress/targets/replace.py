"""Replacements of operators that NPUs do not take.

Exact, and tested to be: a large pooling window by small ones, nearest Resize by a transposed convolution. Not exact,
and so only on request: other activations for SiLU.
"""

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import nn

from damoserve_compress.network import Network
from damoserve_compress.quantise.graph import attributes, drop_unused
from damoserve_compress.targets.operators import resize_factors

SMALL_WINDOW: Final = 3

_SILU: Final[Mapping[str, Callable[[], nn.Module]]] = MappingProxyType({"hardswish": nn.Hardswish, "relu": nn.ReLU})


def replace_silu(network: Network, activation: Literal["sigmoid", "hardswish", "relu"]) -> Network:
    """A copy whose SiLUs are h-swish (arXiv 1905.02244) or ReLU, which it was not trained with; `sigmoid`: as it is."""
    copied = copy.deepcopy(network)
    if activation != "sigmoid":
        for name, module in list(copied.named_modules()):
            if isinstance(module, nn.SiLU):
                copied.set_submodule(name, _SILU[activation]())
    return copied


def split_pooling(model: ModelProto) -> None:
    """Makes each square max pooling at stride 1 that keeps the size one of 3x3 windows, one after the other.

    Exactly equal: a maximum of maxima, and padding is never the greatest. A window of 5 is two of 3, of 13 six. Others
    are left as they are.
    """

    def split(node: NodeProto) -> list[NodeProto]:
        found = attributes(node)
        side, *others = found["kernel_shape"]
        padded = [side // 2] * 4 == list(found.get("pads", [0] * 4))
        dense = max(*found.get("strides", [1, 1]), *found.get("dilations", [1, 1])) == 1
        if side <= SMALL_WINDOW or others != [side] or side % 2 == 0 or not (padded and dense):
            return [node]
        steps = side // 2
        names = [node.input[0], *(f"{node.output[0]}.window{step}" for step in range(1, steps)), node.output[0]]
        return [
            helper.make_node(
                "MaxPool",
                [names[step]],
                [names[step + 1]],
                name=f"{node.name}_{step}",
                kernel_shape=[SMALL_WINDOW] * 2,
                pads=[1] * 4,
                strides=[1, 1],
            )
            for step in range(steps)
        ]

    _rewrite(model, "MaxPool", split)


def upsample_by_convolution(model: ModelProto) -> None:
    """Makes each nearest Resize to twice the size a depthwise transposed convolution by ones.

    Exactly equal. Others are left as they are.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    channels = {value.name: value.type.tensor_type.shape.dim[1].dim_value for value in inferred if _rank(value) == 4}

    def convolve(node: NodeProto) -> list[NodeProto]:
        if resize_factors(node, constants) != [1, 1, 2, 2] or node.input[0] not in channels:
            return [node]
        count, ones = channels[node.input[0]], f"{node.output[0]}.ones"
        model.graph.initializer.append(numpy_helper.from_array(np.ones((count, 1, 2, 2), np.float32), ones))
        new = helper.make_node(
            "ConvTranspose",
            [node.input[0], ones],
            list(node.output),
            name=node.name,
            kernel_shape=[2, 2],
            strides=[2, 2],
            group=count,
        )
        return [new]

    _rewrite(model, "Resize", convolve)


def _rank(value: onnx.ValueInfoProto) -> int:
    return len(value.type.tensor_type.shape.dim)


def _rewrite(model: ModelProto, operator: str, replacement: Callable[[NodeProto], list[NodeProto]]) -> None:
    nodes = [new for node in model.graph.node for new in (replacement(node) if node.op_type == operator else [node])]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unused(model)
