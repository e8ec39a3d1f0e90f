"""Float graphs, and graphs with quantisers, in float16."""

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from damoserve_compress.quantise.graph import Graph


def to_half(model: ModelProto) -> ModelProto:
    """The graph in float16 from the pixels to the head's convolutions; what is behind them stays float32.

    Scores and box distances are computed from the head's float16 values in float32: coordinates of hundreds of pixels
    would be rounded to whole or half ones. Types are explicit everywhere, as strongly typed TensorRT networks are; so
    are scales of quantisers, which have the type of what they make.
    """
    halved = ModelProto()
    halved.CopyFrom(model)
    behind = Graph(model).behind
    _cast_pixels(halved)
    nodes = {node.name: node for node in halved.graph.node if node.name not in behind}
    _store_half(halved, nodes)
    _cast_back(halved, nodes)
    del halved.graph.value_info[:]
    onnx.checker.check_model(halved, full_check=True)
    return halved


def _cast_pixels(model: ModelProto) -> None:
    """Makes the cast the first operator, to float16: TensorRT reads bytes in a cast only, and moves none about."""
    old = Graph(model).cast
    first = helper.make_node("Cast", ["images"], ["images_half"], old.name, to=TensorProto.FLOAT16)
    rest = [node for node in model.graph.node if node.output[0] != old.output[0]]
    for node in rest:
        for index, name in enumerate(node.input):
            moved = old.input[0] if name == old.output[0] else name
            node.input[index] = "images_half" if moved == "images" else moved
    del model.graph.node[:]
    model.graph.node.extend([first, *rest])


def _store_half(model: ModelProto, nodes: dict[str, NodeProto]) -> None:
    """Gives what the nodes compute with in float16; a constant that others read too is kept beside it."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    for node in nodes.values():
        for index, name in enumerate(node.input):
            # Factors of a Resize are float32 whatever it resizes.
            if name in constants and not (node.op_type == "Resize" and index):
                node.input[index] = f"{name}_half"
    read = {name for node in model.graph.node for name in node.input}
    for name, tensor in constants.items():
        if f"{name}_half" in read:
            values = numpy_helper.to_array(tensor).astype(np.float16)
            model.graph.initializer.append(numpy_helper.from_array(values, f"{name}_half"))
        if name not in read:
            model.graph.initializer.remove(tensor)


def _cast_back(model: ModelProto, nodes: dict[str, NodeProto]) -> None:
    """Casts to float32 what the nodes hand on to those behind them: the head's maps."""
    made = {output for node in nodes.values() for output in node.output}
    placed: list[NodeProto] = []
    done: set[str] = set()
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if node.name in nodes or name not in made:
                continue
            if name not in done:
                done.add(name)
                cast = helper.make_node("Cast", [name], [f"{name}_float"], f"{name}/Cast", to=TensorProto.FLOAT)
                placed.append(cast)
            node.input[index] = f"{name}_float"
        placed.append(node)
    del model.graph.node[:]
    model.graph.node.extend(placed)
