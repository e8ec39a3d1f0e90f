"""Graphs for processors, GPUs and NPUs: what they compute, and how they are made up."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from damoserve_compress.export import check_batches, check_parity
from damoserve_compress.measure.evaluate import torch_detector
from damoserve_compress.network import VARIANTS, Network, Structure, build_network
from damoserve_compress.targets import FLOAT_NPU, INTEGER_NPU, TARGETS, check_operators
from damoserve_compress.targets.gpu import Gpu
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import Export, Quantise, Target
from tests.compress.conftest import SIZE
from tests.support.compress.families import CSP, FAMILIES, MOBILE, RES, fill

OPTIONS = Quantise(calibration_images=6)
SMALLEST_SIZE = Size(64, 64)
# The bar for exact replacements: scores to 1e-4. Boxes of the widest nets reach hundreds of pixels in float32.
SCORES, PIXELS = 1e-4, 1e-2


def network_of(structure: Structure) -> Network:
    return fill(build_network(structure, 3))


def written(target: Target, network: Network, options: Export, path: Path, size: Size = SIZE) -> Path:
    TARGETS[target].export(TARGETS[target].adapt(network, options), size, options, path)
    return path


def assert_equals_the_network(path: Path, network: Network, options: Export, images: NDArray[np.uint8]) -> None:
    """Every candidate is one of the network's anchors, the same in score and box, and the best ones are there."""
    scores, boxes = TARGETS["npu"].detector(path, options)(images)
    expected_scores, expected_boxes = torch_detector(network)(images)
    if options.tail != "all":
        best = np.argsort(-expected_scores.max(2), axis=1, kind="stable")[:, : options.candidates, None]
        expected_scores, expected_boxes = (np.take_along_axis(x, best, 1) for x in (expected_scores, expected_boxes))
        assert np.allclose(scores.max(2), expected_scores.max(2), rtol=0, atol=SCORES)
        # Anchors with nearly the same score may have changed places.
        order, expected_order = (np.argsort(x[..., 0], 1, kind="stable") for x in (boxes, expected_boxes))
        scores, boxes = (np.take_along_axis(x, order[..., None], 1) for x in (scores, boxes))
        expected_scores, expected_boxes = (
            np.take_along_axis(x, expected_order[..., None], 1) for x in (expected_scores, expected_boxes)
        )
    assert np.allclose(scores, expected_scores, rtol=0, atol=SCORES)
    assert np.allclose(boxes, expected_boxes, rtol=0, atol=PIXELS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_exact_replacements_equal_the_network_in_all_variants(variant: str, tmp_path: Path) -> None:
    network = network_of(VARIANTS[variant])
    options = Export(tail="all", upsample="transposed_convolution")  # every replacement at once
    path = written("npu", network, options, tmp_path / "model.onnx", SMALLEST_SIZE)
    images = np.random.default_rng(3).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    assert_equals_the_network(path, network, options, images)
    model = onnx.load(path)
    check_operators(model, FLOAT_NPU)
    assert "Resize" not in {node.op_type for node in model.graph.node}


Graphs = Callable[[Target, Structure], Path]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """Float graphs with all defaults, written once."""

    @cache
    def graph(target: Target, structure: Structure) -> Path:
        path = tmp_path_factory.mktemp(f"{target}-{structure.name}") / "model.onnx"
        return written(target, network_of(structure), Export(), path)

    return graph


@pytest.mark.parametrize("structure", FAMILIES, ids=lambda structure: structure.name)
def test_each_family_on_an_npu(structure: Structure, graphs: Graphs, pictures: NDArray[np.uint8]) -> None:
    path = graphs("npu", structure)
    assert_equals_the_network(path, network_of(structure), Export(candidates=1000), pictures)
    model = onnx.load(path)
    check_operators(model, INTEGER_NPU)
    assert [node.op_type for node in model.graph.node].count("MaxPool") == 6
    assert [dimension.dim_value for dimension in model.graph.input[0].type.tensor_type.shape.dim] == [1, 64, 96, 3]


def test_the_host_keeps_the_best_candidates(graphs: Graphs, pictures: NDArray[np.uint8]) -> None:
    detector = TARGETS["npu"].detector(graphs("npu", RES), Export(candidates=17))
    scores, boxes = detector(pictures)
    assert scores.shape == (len(pictures), 17, 3)
    assert boxes.shape == (len(pictures), 17, 4)
    assert (np.diff(scores.max(2), axis=1) <= 0).all()
    check_parity(detector, network_of(RES), pictures)


@pytest.mark.parametrize(("silu", "operator"), [("hardswish", "HardSwish"), ("relu", "Relu")])
def test_an_inexact_replacement_is_what_the_adapted_network_computes(
    silu: str, operator: str, pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    network, options = network_of(CSP), Export(silu=silu)
    adapted = TARGETS["npu"].adapt(network, options)
    path = written("npu", network, options, tmp_path / "model.onnx")
    check_parity(TARGETS["npu"].detector(path, options), adapted, pictures)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert operator in operators
    assert "Sigmoid" not in operators
    difference = np.abs(torch_detector(adapted)(pictures)[0] - torch_detector(network)(pictures)[0]).max()
    assert difference > 1e-3  # it is not exact, and the network it was made from is left as it was


def quantised(target: Target, source: Path, images: NDArray[np.uint8], path: Path) -> ModelProto:
    TARGETS[target].quantise(source, path, lambda: iter(images), OPTIONS)
    finish = TARGETS[target].finish
    assert finish is not None
    finish(path, path)
    return onnx.load(path)


def _name(case: tuple[Target, Structure]) -> str:
    return f"{case[0]}-{case[1].name}"


@pytest.fixture(scope="module", params=[(target, s) for target in ("gpu", "npu") for s in FAMILIES], ids=_name)
def eight_bit(
    request: pytest.FixtureRequest, graphs: Graphs, pictures: NDArray[np.uint8]
) -> tuple[Target, ModelProto, Path]:
    target, structure = request.param
    source = graphs(target, structure)
    return target, quantised(target, source, pictures, source.parent / "int8.onnx"), source.parent


def quantisers(model: ModelProto) -> Iterator[tuple[onnx.NodeProto, NDArray[Any], NDArray[Any]]]:
    """Each node with its scales and zero points."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            yield node, constants[node.input[1]], constants[node.input[2]]


def scales_of(model: ModelProto) -> tuple[dict[str, float], dict[str, float]]:
    """Those of dequantised tensors, and those that tensors are quantised to."""
    scalars = [(node, float(scale)) for node, scale, _ in quantisers(model) if scale.ndim == 0]
    return {node.output[0]: scale for node, scale in scalars}, {node.input[0]: scale for node, scale in scalars}


def test_eight_bits_are_signed_and_without_zero_points(eight_bit: tuple[Target, ModelProto, Path]) -> None:
    target, model, _ = eight_bit
    for _, scale, zero in quantisers(model):
        assert (zero == 0).all()
        assert zero.dtype == np.int8 or (target == "npu" and zero.dtype == np.int32)  # biases
        assert scale.dtype == (np.float16 if target == "gpu" else np.float32)
        assert (scale > 0).all()


def test_convolutions_have_weights_per_channel(eight_bit: tuple[Target, ModelProto, Path]) -> None:
    _, model, _ = eight_bit
    scales = {node.output[0]: scale for node, scale, _ in quantisers(model)}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert node.input[0] in scales
            weight = constants[makers[node.input[1]].input[0]]
            assert weight.data_type == TensorProto.INT8
            assert scales[node.input[1]].shape == (weight.dims[0],)


def test_concatenated_maps_are_on_one_scale(eight_bit: tuple[Target, ModelProto, Path]) -> None:
    _, model, _ = eight_bit
    read, made = scales_of(model)
    seen = 0
    for node in model.graph.node:
        if node.op_type == "Concat" and node.input[0] in read:
            assert {read[name] for name in node.input} == {made[node.output[0]]}
            seen += 1
    assert seen >= 11


def test_a_relu_is_not_parted_from_what_comes_before_it(eight_bit: tuple[Target, ModelProto, Path]) -> None:
    _, model, _ = eight_bit
    dequantised = {node.output[0] for node, _, _ in quantisers(model)}
    assert not any(node.input[0] in dequantised for node in model.graph.node if node.op_type == "Relu")


def test_eight_bits_find_what_the_network_finds(
    eight_bit: tuple[Target, ModelProto, Path], pictures: NDArray[np.uint8]
) -> None:
    target, _, folder = eight_bit
    detect, reference = (TARGETS[target].detector(folder / name, Export()) for name in ("int8.onnx", "model.onnx"))
    scores, expected = (np.sort(found(pictures)[0].max(2), 1) for found in (detect, reference))
    assert np.abs(scores - expected).mean() < 0.02
    check_batches(detect, pictures)


@pytest.mark.parametrize("eight_bit", [("npu", structure) for structure in FAMILIES], indirect=True, ids=_name)
def test_an_npu_computes_everything_in_eight_bits(eight_bit: tuple[Target, ModelProto, Path]) -> None:
    _, model, _ = eight_bit
    check_operators(model, INTEGER_NPU)
    dequantised = {node.output[0] for node, _, _ in quantisers(model)}
    for node in model.graph.node:
        if node.op_type in ("Add", "Concat", "Conv", "HardSwish", "MaxPool", "Mul", "Resize", "Sigmoid"):
            assert node.input[0] in dequantised, node.name
    assert all(output.name in dequantised for output in model.graph.output)


def test_the_same_images_give_the_same_bytes(pictures: NDArray[np.uint8], tmp_path: Path) -> None:
    options = Export(tail="all", upsample="transposed_convolution")
    source = written("npu", network_of(MOBILE), options, tmp_path / "model.onnx")
    paths = [tmp_path / name for name in ("first.onnx", "second.onnx")]
    models = [quantised("npu", source, pictures, path) for path in paths]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    detect, reference = (TARGETS["npu"].detector(path, options) for path in (paths[0], source))
    assert np.abs(detect(pictures)[0] - reference(pictures)[0]).mean() < 0.02
    read, made = scales_of(models[0])
    doubled = [node for node in models[0].graph.node if node.op_type == "ConvTranspose"]
    assert [read[node.input[0]] for node in doubled] == [made[node.output[0]] for node in doubled]


@pytest.mark.parametrize("structure", FAMILIES, ids=lambda structure: structure.name)
def test_a_gpu_graph_is_float16_up_to_the_head(
    structure: Structure, graphs: Graphs, pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    network, gpu, path = network_of(structure), Gpu(), graphs("gpu", structure)
    gpu.finish(path, tmp_path / "half.onnx")
    detector = gpu.detector(tmp_path / "half.onnx", Export())
    check_parity(detector, network, pictures, gpu.tolerance)
    check_batches(detector, pictures)
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "half.onnx")).graph
    # TensorRT refuses bytes anywhere else.
    assert [node.op_type for node in graph.node if "images" in node.input] == ["Cast"]
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    assert {types[node.output[0]] for node in graph.node if node.op_type == "Conv"} == {TensorProto.FLOAT16}
    assert {types[node.output[0]] for node in graph.node if node.op_type == "Softmax"} == {TensorProto.FLOAT}
    assert {types[name] for name in ("scores", "boxes")} == {TensorProto.FLOAT}
    assert (tmp_path / "half.onnx").stat().st_size < 0.7 * path.stat().st_size


def test_a_processor_takes_unsigned_activations(graphs: Graphs, pictures: NDArray[np.uint8], tmp_path: Path) -> None:
    network, cpu, path = network_of(RES), TARGETS["cpu"], graphs("cpu", RES)
    assert cpu.finish is None
    check_parity(cpu.detector(path, Export()), network, pictures)
    report = cpu.quantise(path, tmp_path / "int8.onnx", lambda: iter(pictures), OPTIONS)
    assert report.calibration.images == OPTIONS.calibration_images
    zeros = [(node.op_type, zero) for node, _, zero in quantisers(onnx.load(tmp_path / "int8.onnx"))]
    assert {zero.dtype.name for operator, zero in zeros if operator == "QuantizeLinear"} == {"uint8"}
    assert {zero.dtype.name for _, zero in zeros if zero.ndim == 1} == {"int8", "int32"}  # weights and biases


def test_replacements_leave_the_network_as_it_was() -> None:
    network = network_of(CSP)
    before = str(network)
    assert str(TARGETS["npu"].adapt(network, Export(silu="relu"))) != before
    assert str(network) == before
