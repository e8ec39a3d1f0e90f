"""The exported float graph as quantisation sees it: which parts go together, and what of it becomes 8-bit."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from damoserve_compress.quantise.errors import QuantisationError

MOVERS = ("MaxPool", "Reshape", "Resize", "Split", "Transpose")
"""Operators whose output has the values of their input, and so its range."""


@dataclass(frozen=True)
class ConvolutionGroup:
    """Convolutions that share their weights, with the activations right behind them: in 8 bits all or none."""

    name: str
    """The weights' name, without the ending."""
    convolutions: tuple[str, ...]
    """Names of the nodes."""
    nodes: tuple[str, ...]
    """The names of the convolutions and of their activations."""


class Graph:
    """A float graph from uint8 `images` to the candidates. Raises QuantisationError where it is not one of ours."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.consumers: Mapping[str, list[NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self.consumers[name].append(node)
        self.cast = self._find_cast()
        if not self.convolutions:
            raise QuantisationError("the graph has no convolution: there is nothing to quantise")

    def _find_cast(self) -> NodeProto:
        """The one operator through which pixels become floats, whatever moves them about before."""
        pixels = {"images"}
        for node in self.model.graph.node:
            if pixels & set(node.input):
                if node.op_type == "Cast":
                    return node
                if node.op_type not in ("Concat", "Reshape", "Split", "Transpose"):
                    break
                pixels |= set(node.output)
        raise QuantisationError("the graph does not begin with a cast of uint8 images to float")

    @cached_property
    def convolutions(self) -> list[NodeProto]:
        return [node for node in self.model.graph.node if node.op_type == "Conv"]

    @cached_property
    def initialisers(self) -> dict[str, TensorProto]:
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    def weights(self, name: str) -> NDArray[np.float32]:
        """An initialiser's values. Raises QuantisationError where the name is not one's."""
        if name not in self.initialisers:
            raise QuantisationError(f"{name} is not constant: only graphs with fixed weights can be quantised")
        return numpy_helper.to_array(self.initialisers[name])

    @cached_property
    def heads(self) -> list[NodeProto]:
        """The convolutions that no other follows."""
        return [
            node
            for node in self.convolutions
            if all(follower.op_type != "Conv" for follower in self._followers(node).values())
        ]

    @cached_property
    def behind(self) -> frozenset[str]:
        """Names of all nodes that depend on a head; they stay in float."""
        return frozenset(name for head in self.heads for name in self._followers(head))

    def _followers(self, node: NodeProto) -> dict[str, NodeProto]:
        found: dict[str, NodeProto] = {}
        waiting = [node]
        while waiting:
            for output in waiting.pop().output:
                fresh = [follower for follower in self.consumers[output] if follower.name not in found]
                found |= {follower.name: follower for follower in fresh}
                waiting += fresh
        return found

    @cached_property
    def groups(self) -> tuple[ConvolutionGroup, ...]:
        """The groups of convolutions, in the graph's order."""
        members: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.convolutions:
            members[node.input[1]].append(node)
        return tuple(
            ConvolutionGroup(
                name=weight.removesuffix(".weight"),
                convolutions=tuple(node.name for node in nodes),
                nodes=tuple(name for node in nodes for name in (node.name, *self._activation(node))),
            )
            for weight, nodes in members.items()
        )

    def _activation(self, node: NodeProto) -> Iterable[str]:
        """Names of the nodes of the ReLU or SiLU right behind a convolution, if there is one."""
        after = self.consumers[node.output[0]]
        if [follower.op_type for follower in after] == ["Relu"]:
            return [after[0].name]
        if sorted(follower.op_type for follower in after) == ["Mul", "Sigmoid"]:
            return [follower.name for follower in after]
        return []

    @cached_property
    def sources(self) -> dict[str, str]:
        """The source of every activation that may be quantised: the tensor whose range it has, often itself.

        What only a ReLU reads has the ReLU's range; moved values have that of the tensor they came from.
        """
        floats = self._float_tensors()
        sources = {self.cast.output[0]: self.cast.output[0]}
        for node in self.model.graph.node:
            if node.name in self.behind:
                continue
            for output in node.output:
                if output in floats:
                    moved = node.op_type in MOVERS and node.input[0] in sources
                    sources[output] = sources[node.input[0]] if moved else output
        for node in self.model.graph.node:
            if node.op_type == "Relu" and node.name not in self.behind and len(self.consumers[node.input[0]]) == 1:
                sources[node.input[0]] = node.output[0]
        return sources

    def _float_tensors(self) -> set[str]:
        inferred = onnx.shape_inference.infer_shapes(self.model).graph
        return {
            value.name
            for value in (*inferred.value_info, *inferred.output)
            if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes by their names."""
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def drop_unused(model: ModelProto) -> None:
    """Removes constants that no node reads."""
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)
