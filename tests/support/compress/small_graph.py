"""A float graph of five convolutions like the exported ones: pixels in, scores and boxes out."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

SIDE = 16
NAMES = ("first", "uneven", "silu", "classes", "sides")
"""Groups of convolutions in the graph's order. Channels of `uneven` differ much in range, which `silu` makes up for."""
_RANGES = np.geomspace(0.01, 10, 8)


def small_model(seed: int = 0) -> ModelProto:
    rng = np.random.default_rng(seed)
    constants: dict[str, NDArray[np.generic]] = {"rows": np.array([0, -1, 2])}
    nodes: list[NodeProto] = []

    def add(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}_node", **attributes))
        return output

    def convolution(name: str, source: str, channels: tuple[int, int], scale: float, kernel: int = 3) -> str:
        weights = rng.normal(0, scale, (channels[1], channels[0], kernel, kernel))
        if name == "uneven":
            weights *= _RANGES[:, None, None, None]
        if name == "silu":
            weights /= _RANGES[None, :, None, None]
        constants[f"{name}.weight"] = weights.astype(np.float32)
        constants[f"{name}.bias"] = rng.normal(0, 0.1, channels[1]).astype(np.float32)
        inputs = [source, f"{name}.weight", f"{name}.bias"]
        return add("Conv", inputs, f"{name}_out", kernel_shape=[kernel, kernel], pads=[kernel // 2] * 4)

    add("Transpose", ["images"], "planes", perm=[0, 3, 1, 2])
    add("Cast", ["planes"], "pixels", to=TensorProto.FLOAT)
    add("Relu", [convolution("first", "pixels", (3, 8), 0.003)], "a")
    add("Relu", [convolution("uneven", "a", (8, 8), 0.2)], "b")
    add("Sigmoid", [convolution("silu", "b", (8, 8), 0.05)], "gate")
    add("Mul", ["silu_out", "gate"], "c")
    add("Concat", ["a", "c"], "both", axis=1)
    for name, output in (("classes", "logits"), ("sides", "boxes")):
        add("Transpose", [convolution(name, "both", (16, 2), 0.2, 1)], f"{name}_last", perm=[0, 2, 3, 1])
        add("Reshape", [f"{name}_last", "rows"], output)
    add("Sigmoid", ["logits"], "scores")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "small",
        [value("images", TensorProto.UINT8, ["n", SIDE, SIDE, 3])],
        [value(name, TensorProto.FLOAT, ["n", SIDE * SIDE, 2]) for name in ("scores", "boxes")],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def save_small(path: Path) -> Path:
    onnx.save(small_model(), path)
    return path


def small_images(count: int, seed: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def in_eight_bits(path: Path) -> set[str]:
    """Names of the groups whose weights a written graph holds as integers."""
    model = onnx.load(path)
    made = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    return {node.name.removesuffix("_out_node") for node in convolutions if node.input[1] in made}
