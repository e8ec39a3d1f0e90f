"""The 8-bit graph runs in 8 bits, and says nearly the same as the float one."""

import collections
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from damoserve_compress.export import check_batches, export_onnx
from damoserve_compress.network import Network
from damoserve_compress.quantise import QuantisationError, quantise_onnx
from damoserve_compress.session import onnx_detector, open_session
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import Export, Quantise

OPTIONS = Quantise(calibration_images=4)


@pytest.fixture(scope="module")
def float_graph(tiny_network: Network, size: Size, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantise") / "float.onnx"
    export_onnx(tiny_network, size, Export(candidates=40, stem="space_to_depth"), path)
    return path


@pytest.fixture(scope="module")
def graph(float_graph: Path, pictures: NDArray[np.uint8]) -> Path:
    path = float_graph.with_name("int8.onnx")
    quantise_onnx(float_graph, path, iter(pictures), OPTIONS)
    return path


def test_every_convolution_runs_in_eight_bits(graph: Path, float_graph: Path, tmp_path: Path) -> None:
    optimised = tmp_path / "optimised.onnx"
    open_session(graph, optimised=optimised)
    operators = collections.Counter(node.op_type for node in onnx.load(optimised).graph.node)
    convolutions = sum(node.op_type == "Conv" for node in onnx.load(float_graph).graph.node)
    assert operators["QLinearConv"] == convolutions
    assert operators["Conv"] == operators["FusedConv"] == 0
    # Pixels enter as they are, and floats begin at the six outputs of the head.
    assert operators["QuantizeLinear"] == 0
    assert operators["DequantizeLinear"] == 6


def test_weights_are_signed_per_channel_and_in_reduced_range(graph: Path) -> None:
    model = onnx.load(graph)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = [tensor for tensor in tensors.values() if tensor.ndim == 4]
    assert weights
    assert all(weight.dtype == np.int8 and np.abs(weight.astype(int)).max() <= 64 for weight in weights)
    inputs = {node.input[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    assert all(
        tensors[inputs[name].input[1]].shape == (len(tensor),) for name, tensor in tensors.items() if tensor.ndim == 4
    )


def test_a_batch_gives_what_its_images_give(graph: Path, pictures: NDArray[np.uint8]) -> None:
    check_batches(onnx_detector(graph), pictures)


def test_a_graph_that_does_not_begin_with_pixels_is_refused(tmp_path: Path, pictures: NDArray[np.uint8]) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["images"], ["scores"], name="relu")],
        "floats",
        [value("images", TensorProto.FLOAT, ["n", 4, 4, 3])],
        [value("scores", TensorProto.FLOAT, ["n", 4, 4, 3])],
    )
    source = tmp_path / "floats.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), source)
    with pytest.raises(QuantisationError, match="cast"):
        quantise_onnx(source, tmp_path / "out.onnx", iter(pictures), OPTIONS)


def test_scores_and_boxes_stay_close(graph: Path, float_graph: Path, pictures: NDArray[np.uint8]) -> None:
    scores, boxes = onnx_detector(graph)(pictures)
    float_scores, float_boxes = onnx_detector(float_graph)(pictures)
    assert np.abs(scores.max(2) - float_scores.max(2)).mean() < 0.05
    # The best few candidates of one are among those of the other.
    distances = np.abs(boxes[:, :5, None] - float_boxes[:, None]).max(3).min(2)
    assert np.median(distances) < 4


def test_the_same_images_give_the_same_file(float_graph: Path, graph: Path, pictures: NDArray[np.uint8]) -> None:
    again = graph.with_name("again.onnx")
    quantise_onnx(float_graph, again, iter(pictures), OPTIONS)
    assert again.read_bytes() == graph.read_bytes()


def test_only_the_announced_images_are_read(float_graph: Path, tmp_path: Path, pictures: NDArray[np.uint8]) -> None:
    images = iter(pictures)
    quantise_onnx(float_graph, tmp_path / "few.onnx", images, Quantise(calibration_images=2))
    assert np.array_equal(next(images), pictures[2])
