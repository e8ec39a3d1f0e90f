"""The operators that a target takes, as a list that exported graphs are checked against.

TargetError   the graph holds what the target does not take
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from damoserve_compress.quantise.graph import attributes

SHOWN: Final = 5


class TargetError(RuntimeError):
    """The graph cannot run on the target; the message names operator and layer, and what to do."""


@dataclass(frozen=True)
class Tensors:
    """The tensors of a graph by their names, as far as they are known."""

    shapes: Mapping[str, tuple[int, ...]]
    """0: not known before the graph runs."""
    constants: Mapping[str, onnx.TensorProto]


Rule = Callable[[NodeProto, Tensors], str | None]
"""A function that says what is wrong with a node of the operator, or None."""


@dataclass(frozen=True)
class AllowList:
    """The graphs that a target takes: tensors of known shape and at most `rank` dimensions, operators within limits."""

    name: str
    opsets: range
    rules: Mapping[str, Rule]
    rank: int = 4
    longest: int = 65535
    """The largest size of any dimension."""


def check_operators(model: ModelProto, allowed: AllowList) -> None:
    """Raises TargetError that names the operators and layers which are not on the list, and the replacements."""
    [opset] = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    faults = [] if opset in allowed.opsets else [f"opset {opset} is not in {_span(allowed.opsets)}: set export.opset"]
    tensors = _tensors(model)
    for node in model.graph.node:
        faults += [f"{node.op_type} in layer {node.name}: {fault}" for fault in _faults(node, tensors, allowed)]
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise TargetError(f"not for {allowed.name}: {'; '.join(faults[:SHOWN])}{more}")


def _faults(node: NodeProto, tensors: Tensors, allowed: AllowList) -> Iterator[str]:
    rule = allowed.rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None:
        yield f"not on the list. {_REPLACEMENTS.get(node.op_type, 'There is no replacement: keep it on the host')}"
        return
    fault = rule(node, tensors)
    if fault:
        yield fault
    for name in filter(None, (*node.input, *node.output)):
        shape = tensors.shapes.get(name)
        if shape is None or 0 in shape:
            yield f"the shape of {name} is not known before it runs. Export for one image, as the target npu does"
        elif len(shape) > allowed.rank or max(shape, default=0) > allowed.longest:
            yield f"{name} is {list(shape)}: at most {allowed.rank} dimensions, each at most {allowed.longest}"


def _tensors(model: ModelProto) -> Tensors:
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shapes: dict[str, tuple[int, ...]] = {name: tuple(tensor.dims) for name, tensor in constants.items()}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(part.dim_value for part in value.type.tensor_type.shape.dim)
    return Tensors(shapes, constants)


def anything(node: NodeProto, tensors: Tensors) -> None:
    """No limits."""


def convolution(kernel: int, stride: int) -> Rule:
    """Dense or depthwise, without dilation, kernel and stride at most so large."""

    def rule(node: NodeProto, tensors: Tensors) -> str | None:
        found, weight = attributes(node), tensors.shapes.get(node.input[1], ())
        groups, channels = found.get("group", 1), tensors.shapes.get(node.input[0], (0, 0))[1]
        if max(weight[2:], default=0) > kernel or max(found.get("strides", [1])) > stride:
            return f"kernel {list(weight[2:])}, stride {found.get('strides')}: at most {kernel} and {stride}"
        if max(found.get("dilations", [1])) > 1 or groups not in (1, channels):
            return f"dilation {found.get('dilations')}, {groups} groups: only dense or depthwise ones without dilation"
        return None

    return rule


def pooling(kernel: int) -> Rule:
    """Windows at most so large."""

    def rule(node: NodeProto, tensors: Tensors) -> str | None:
        window = attributes(node)["kernel_shape"]
        if max(window) <= kernel:
            return None
        return f"window {list(window)}, at most {kernel}. split_pooling makes smaller ones of it, one after the other"

    return rule


def nearest_resize(node: NodeProto, tensors: Tensors) -> str | None:
    """Nearest neighbour by constant whole factors; the one form in which all runtimes pick the same pixel."""
    factors = resize_factors(node, tensors.constants)
    if factors is not None and all(factor == int(factor) for factor in factors):
        return None
    return "not nearest, asymmetric, floor, by constant whole factors. Use upsample: transposed_convolution"


def resize_factors(node: NodeProto, constants: Mapping[str, onnx.TensorProto]) -> list[float] | None:
    """The factors of a Resize that repeats pixels; None if it does anything else, or they are not constant."""
    found = attributes(node)
    form = [found.get(name, b"") for name in ("mode", "coordinate_transformation_mode", "nearest_mode")]
    if form != [b"nearest", b"asymmetric", b"floor"] or len(node.input) < 3 or node.input[2] not in constants:
        return None
    factors: list[float] = numpy_helper.to_array(constants[node.input[2]]).tolist()
    return factors


def last_axis(node: NodeProto, tensors: Tensors) -> str | None:
    """Allows only the last dimension to be reduced."""
    rank = len(tensors.shapes.get(node.input[0], ()))
    given = tensors.constants.get(node.input[1]) if len(node.input) > 1 else None
    along = [attributes(node).get("axis", -1)] if given is None else numpy_helper.to_array(given).ravel().tolist()
    return None if along in ([-1], [rank - 1]) else f"along dimensions {along} of {rank}, not the last alone"


def _span(versions: range) -> str:
    return f"{versions.start} to {versions.stop - 1}"


_CHOICE = "It belongs to the choice of candidates. Use tail: all or tail: host"
_SQUARES = "It moves pixels about. Use stem: convolution"
_SILU = "It is a SiLU or the like in one operator. Use silu: sigmoid or silu: relu, and opset 23 at most"
_DYNAMIC = "It computes a shape. Export for one image, as the target npu does"
_REPLACEMENTS: Final[Mapping[str, str]] = MappingProxyType(
    dict.fromkeys(("TopK", "Gather", "GatherElements", "GatherND", "NonMaxSuppression", "ReduceMax"), _CHOICE)
    | dict.fromkeys(("Slice", "Split", "DepthToSpace", "SpaceToDepth"), _SQUARES)
    | dict.fromkeys(("Gelu", "HardSwish", "Mish", "QuickGelu", "Swish"), _SILU)
    | dict.fromkeys(("ConstantOfShape", "Expand", "Range", "Shape"), _DYNAMIC)
    | {"Resize": "Use upsample: transposed_convolution", "ConvTranspose": "Use upsample: resize"}
)
