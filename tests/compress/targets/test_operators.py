"""What is no operator for an NPU is refused by name and layer, and small operators equal what they replace."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from damoserve_compress.targets import FLOAT_NPU, INTEGER_NPU, TargetError, check_operators
from damoserve_compress.targets.replace import split_pooling, upsample_by_convolution
from tests.support.compress.small_graph import small_model

LAYER = "network.neck/last"


def model_of(
    nodes: Sequence[NodeProto],
    shape: Sequence[int | str],
    constants: dict[str, NDArray[np.generic]] | None = None,
    opset: int = 20,
) -> ModelProto:
    """A graph from `x` to `y`."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        list(nodes),
        "small",
        [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def node(operator: str, *inputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, ["x", *inputs], ["y"], name=LAYER, **attributes)


def resize(scale: float, mode: str = "nearest", rounding: str = "floor") -> ModelProto:
    options = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": rounding}
    scales = np.array([1, 1, scale, scale], np.float32)
    return model_of([node("Resize", "", "scales", **options)], [1, 3, 4, 6], {"scales": scales})


def convolution(shape: Sequence[int], groups: int = 1, **attributes: object) -> ModelProto:
    channels = shape[1] * groups
    weights = np.ones(shape, np.float32)
    return model_of([node("Conv", "w", group=groups, **attributes)], [1, channels, 32, 32], {"w": weights})


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        (model_of([node("Gelu")], [1, 3, 4, 4]), "silu: sigmoid"),
        (model_of([node("ReduceMax")], [1, 3, 4, 4]), "tail: all or tail: host"),
        (model_of([node("Shape")], [1, 3, 4, 4]), "one image"),
        (model_of([node("Erf")], [1, 3, 4, 4]), "keep it on the host"),
        (model_of([node("Relu")], ["n", 3, 4, 4]), "the shape of x is not known"),
        (model_of([node("Relu")], [1, 1, 3, 4, 4]), "at most 4 dimensions"),
        (model_of([node("Relu")], [1, 1, 70000, 1]), "at most 65535"),
        (model_of([node("Relu")], [1, 3, 4, 4], opset=24), "set export.opset"),
        (model_of([node("MaxPool", kernel_shape=[5, 5])], [1, 3, 8, 8]), "split_pooling"),
        (convolution((4, 3, 9, 9)), "kernel"),
        (convolution((4, 3, 3, 3), strides=[4, 4]), "stride"),
        (convolution((4, 3, 3, 3), dilations=[2, 2]), "dilation"),
        (convolution((4, 2, 3, 3), groups=2), "depthwise"),
        (resize(2, mode="linear"), "upsample: transposed_convolution"),
        (resize(2, rounding="ceil"), "upsample: transposed_convolution"),
        (resize(1.5), "whole factors"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_what_is_not_on_the_list_is_named_with_its_layer(model: ModelProto, fault: str) -> None:
    with pytest.raises(TargetError, match=fault) as error:
        check_operators(model, INTEGER_NPU)
    if "opset" not in fault:
        assert f"{model.graph.node[0].op_type} in layer {LAYER}" in str(error.value)


@pytest.mark.parametrize(
    "model",
    [
        model_of([node("Relu")], [1, 3, 4, 4]),
        model_of([node("HardSwish")], [1, 3, 4, 4]),
        model_of([node("MaxPool", kernel_shape=[3, 3])], [1, 3, 8, 8]),
        convolution((4, 3, 6, 6), strides=[2, 2]),
        convolution((4, 1, 5, 5), groups=4),
        resize(2),
    ],
    ids=lambda model: model.graph.node[0].op_type,
)
def test_what_is_on_the_list_passes(model: ModelProto) -> None:
    check_operators(model, INTEGER_NPU)


@pytest.mark.parametrize(
    ("axes", "fine"), [([-1], True), ([3], True), ([2], False), ([2, 3], False), ([-2, -1], False)]
)
def test_sums_are_taken_over_the_last_dimension_alone(axes: list[int], fine: bool) -> None:
    constants: dict[str, NDArray[np.generic]] = {"axes": np.array(axes, np.int64)}
    model = model_of([node("ReduceSum", "axes", keepdims=0)], [1, 3, 4, 4], constants)
    if fine:
        check_operators(model, FLOAT_NPU)
        return
    with pytest.raises(TargetError, match=r"ReduceSum in layer .*not the last alone"):
        check_operators(model, FLOAT_NPU)


def test_an_operator_of_another_domain_is_refused() -> None:
    foreign = helper.make_node("Relu", ["x"], ["y"], name=LAYER, domain="com.microsoft")
    model = model_of([foreign], [1, 3, 4, 4])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(TargetError, match=f"Relu in layer {LAYER}: not on the list"):
        check_operators(model, INTEGER_NPU)


def test_all_faults_of_a_graph_are_counted() -> None:
    with pytest.raises(TargetError, match=r"Transpose in layer planes_node: .*; and \d+ more"):
        check_operators(small_model(), INTEGER_NPU)  # it takes any number of images


@settings(max_examples=30, deadline=None)
@given(
    side=st.sampled_from([1, 3, 5, 7, 9, 13]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_small_windows_equal_a_large_one(side: int, height: int, width: int, seed: int) -> None:
    pool = node("MaxPool", kernel_shape=[side, side], pads=[side // 2] * 4, strides=[1, 1])
    model = model_of([pool], [1, 2, height, width])
    x = np.random.default_rng(seed).normal(-3, 2, (1, 2, height, width)).astype(np.float32)
    [expected] = ReferenceEvaluator(model).run(None, {"x": x})
    split_pooling(model)
    assert max((side for new in model.graph.node for side in new.attribute[0].ints), default=1) <= 3
    [found] = ReferenceEvaluator(model).run(None, {"x": x})
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("model", [resize(3), resize(2, mode="linear")])
def test_a_resize_that_does_not_double_is_left(model: ModelProto) -> None:
    upsample_by_convolution(model)
    assert [new.op_type for new in model.graph.node] == ["Resize"]


@pytest.mark.parametrize(
    "options",
    [
        {"strides": [2, 2], "pads": [2] * 4},
        {"strides": [1, 1]},
        {"pads": [1] * 4},
        {"pads": [2] * 4, "dilations": [2, 2]},
    ],
)
def test_a_pooling_that_changes_the_size_is_left_for_the_check(options: dict[str, list[int]]) -> None:
    model = model_of([node("MaxPool", kernel_shape=[5, 5], **options)], [1, 2, 8, 8])
    split_pooling(model)
    with pytest.raises(TargetError, match="window"):
        check_operators(model, INTEGER_NPU)


@settings(max_examples=20, deadline=None)
@given(channels=st.integers(1, 5), height=st.integers(1, 6), width=st.integers(1, 6), seed=st.integers(0, 99))
def test_a_transposed_convolution_equals_nearest_resize(channels: int, height: int, width: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(0, 2, (1, channels, height, width)).astype(np.float32)
    model = resize(2)
    # The replacement reads the channels off the tensor before it, as between two layers.
    model.graph.node[0].input[0] = "before"
    model.graph.node.insert(0, helper.make_node("Relu", ["x"], ["before"], name="before"))
    for axis, length in enumerate(x.shape):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = length
    [expected] = ReferenceEvaluator(model).run(None, {"x": x})
    assert np.shape(expected) == (1, channels, 2 * height, 2 * width)
    upsample_by_convolution(model)
    assert [new.op_type for new in model.graph.node] == ["Relu", "ConvTranspose"]
    [found] = ReferenceEvaluator(model).run(None, {"x": x})
    assert np.array_equal(found, expected)
