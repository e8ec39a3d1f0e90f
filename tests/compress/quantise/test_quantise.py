"""The 8-bit graph runs in 8 bits, and says nearly the same as the float one."""

import collections
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from damoserve_compress.export import check_batches, export_onnx
from damoserve_compress.measure.runtime import onnx_detector, open_session
from damoserve_compress.network import Network
from damoserve_compress.quantise import QuantisationError, QuantisationReport, quantise_onnx
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import Export, Quantise, RecipeError, read_recipe
from damoserve_profiles.runtimes import openvino_core
from tests.support.compress.small_graph import save_small, small_images

ROOT = Path(__file__).parents[3]

OPTIONS = Quantise(calibration_images=4)


@pytest.fixture(scope="module")
def float_graph(tiny_network: Network, size: Size, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantise") / "float.onnx"
    export_onnx(tiny_network, size, Export(candidates=40, stem="space_to_depth"), path)
    return path


@pytest.fixture(scope="module")
def graph(float_graph: Path, pictures: NDArray[np.uint8]) -> Path:
    path = float_graph.with_name("int8.onnx")
    quantise_onnx(float_graph, path, lambda: pictures, OPTIONS)
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


@pytest.mark.openvino
def test_in_openvino_the_first_convolution_is_in_eight_bits_too(
    tiny_network: Network, size: Size, pictures: NDArray[np.uint8], graph: Path, tmp_path: Path
) -> None:
    path = tmp_path / "openvino.onnx"
    export_onnx(tiny_network, size, Export(candidates=40), path)
    quantise_onnx(path, path, lambda: pictures, OPTIONS.model_copy(update={"engine": "openvino"}))
    compiled = openvino_core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    precisions = [str(kind["runtimePrecision"]) for kind in kinds if str(kind["layerType"]) == "Convolution"]
    assert set(precisions) <= {"u8", "i8"}, precisions
    # Pixels that the graph quantises are the pixels.
    best = [np.sort(onnx_detector(written)(pictures)[0].max(2)) for written in (path, graph)]
    np.testing.assert_allclose(best[0], best[1], atol=0.05)


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
        quantise_onnx(source, tmp_path / "out.onnx", lambda: pictures, OPTIONS)


def test_scores_and_boxes_stay_close(graph: Path, float_graph: Path, pictures: NDArray[np.uint8]) -> None:
    scores, boxes = onnx_detector(graph)(pictures)
    float_scores, float_boxes = onnx_detector(float_graph)(pictures)
    assert np.abs(scores.max(2) - float_scores.max(2)).mean() < 0.05
    # The best few candidates of one are among those of the other.
    distances = np.abs(boxes[:, :5, None] - float_boxes[:, None]).max(3).min(2)
    assert np.median(distances) < 4


def test_the_same_images_give_the_same_file(float_graph: Path, graph: Path, pictures: NDArray[np.uint8]) -> None:
    again = graph.with_name("again.onnx")
    quantise_onnx(float_graph, again, lambda: pictures, OPTIONS)
    assert again.read_bytes() == graph.read_bytes()


def test_only_the_announced_images_are_read(float_graph: Path, tmp_path: Path, pictures: NDArray[np.uint8]) -> None:
    images = iter(pictures)
    quantise_onnx(float_graph, tmp_path / "few.onnx", lambda: images, Quantise(calibration_images=2))
    assert np.array_equal(next(images), pictures[2])


SAME = """
import sys
from pathlib import Path
from damoserve_compress.quantise import quantise_onnx
from damoserve_profiles.recipe import Quantise
from tests.support.compress.small_graph import save_small, small_images

folder = Path(sys.argv[1])
source = save_small(folder / "float.onnx")
options = Quantise(calibration_images=4, ranges="auto", equalise=True, bias_correction=True, sensitivity=True)
quantise_onnx(source, folder / "int8.onnx", lambda: small_images(4), options)
"""


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", SAME, str(folder)], check=True, env=environment, cwd=ROOT)
        files.append((folder / "int8.onnx").read_bytes())
    assert files[0] == files[1]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return save_small(tmp_path / "float.onnx")


def small_report(source: Path, **options: object) -> QuantisationReport:
    chosen = Quantise.model_validate({"calibration_images": 4, **options})
    return quantise_onnx(source, source.with_name("int8.onnx"), lambda: small_images(4), chosen)


def test_the_float_graph_may_be_overwritten(small: Path) -> None:
    small_report(small)
    quantise_onnx(small, small, lambda: small_images(4), OPTIONS)
    assert small.read_bytes() == small.with_name("int8.onnx").read_bytes()


@pytest.mark.parametrize(("operators", "kept"), [("all", set()), ("conv+concat", {"Sigmoid", "Mul"})])
def test_the_op_set_says_what_runs_in_eight_bits(small: Path, operators: str, kept: set[str]) -> None:
    small_report(small, operators=operators)
    optimised = small.with_name("optimised.onnx")
    open_session(small.with_name("int8.onnx"), optimised=optimised)
    found = collections.Counter(node.op_type for node in onnx.load(optimised).graph.node)
    assert found["QLinearConcat"] == 1
    assert ("QLinearSigmoid" in found) == (not kept)


def test_with_convolutions_alone_the_concatenation_is_float(small: Path) -> None:
    small_report(small, operators="conv")
    optimised = small.with_name("optimised.onnx")
    open_session(small.with_name("int8.onnx"), optimised=optimised)
    found = collections.Counter(node.op_type for node in onnx.load(optimised).graph.node)
    assert (found["Concat"], found["QLinearConcat"], found["QLinearConv"]) == (1, 0, 5)


def test_the_fastest_op_set_is_measured_and_kept(small: Path) -> None:
    report = small_report(small, operators="measure")
    times = {row.operators: row.milliseconds for row in report.operator_times}
    assert set(times) == {"all", "conv", "conv+concat"}
    assert all(time > 0 for time in times.values())
    assert times[report.operators] == min(times.values())
    measured = small.with_name("int8.onnx").read_bytes()
    small_report(small, operators=report.operators)
    assert small.with_name("int8.onnx").read_bytes() == measured


@pytest.mark.parametrize(("instructions", "reduced"), [("avx512_vnni", False), ("avx512f", True), ("riscv64", True)])
def test_weights_have_seven_bits_where_the_processor_would_overflow(
    small: Path, monkeypatch: pytest.MonkeyPatch, instructions: str, reduced: bool
) -> None:
    monkeypatch.setattr("damoserve_compress.quantise.quantise.instruction_set", lambda: instructions)
    report = small_report(small, reduce_range=None)
    assert (report.instruction_set, report.reduce_range) == (instructions, reduced)
    stored = {tensor.name: tensor for tensor in onnx.load(small.with_name("int8.onnx")).graph.initializer}
    greatest = np.abs(numpy_helper.to_array(stored["uneven.weight_quantized"]).astype(int)).max()
    assert greatest == (64 if reduced else 127)


def test_the_head_keeps_all_of_its_values(small: Path) -> None:
    report = small_report(small, ranges="percentile", percentile=90)
    methods = {row.tensor: row.method for row in report.tensors}
    assert methods["classes_out"] == methods["sides_out"] == "minmax"
    assert methods["both"] == "percentile"


@pytest.mark.parametrize(
    ("field", "reason"), [({"method": "dynamic"}, "at each request"), ({"activations": "int8"}, "slower than float")]
)
def test_what_is_known_to_be_slower_is_refused_with_the_reason(
    tmp_path: Path, field: dict[str, str], reason: str
) -> None:
    path = tmp_path / "slow.yaml"
    path.write_text(yaml.safe_dump({"quantise": {"calibration_images": 4, **field}}))
    with pytest.raises(RecipeError, match=rf"{next(iter(field))}.*{reason}"):
        read_recipe(path)
