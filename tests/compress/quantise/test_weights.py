"""Equalisation and bias correction change weights and biases, and what for."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from damoserve_compress.export import export_onnx
from damoserve_compress.measure.runtime import onnx_detector
from damoserve_compress.network import Network
from damoserve_compress.quantise import quantise_onnx
from damoserve_compress.quantise.equalise import equalise
from damoserve_compress.quantise.graph import Graph
from damoserve_compress.quantise.observe import observe
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import Export, Quantise
from tests.support.compress.small_graph import save_small, small_images, small_model

IMAGES = small_images(6)


def weights(model: ModelProto, name: str) -> NDArray[np.float32]:
    return Graph(model).weights(name)


def changed(before: ModelProto, after: ModelProto) -> set[str]:
    old, new = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer} for model in (before, after)
    )
    return {name for name in old if not np.array_equal(old[name], new[name])}


def test_equalised_channels_have_the_same_range_on_both_sides() -> None:
    after = equalise(small_model())
    ranges = [
        np.abs(weights(after, "uneven.weight")).max((1, 2, 3)),
        np.abs(weights(after, "silu.weight")).max((0, 2, 3)),
    ]
    assert np.allclose(ranges[0], ranges[1], rtol=1e-3)


def test_only_convolutions_with_nothing_but_a_relu_between_them_are_equalised() -> None:
    before = small_model()
    # Two read the ReLU behind `first`, and a SiLU is behind `silu`.
    assert changed(before, equalise(before)) == {"uneven.weight", "uneven.bias", "silu.weight"}


def test_an_output_of_the_graph_is_not_rescaled() -> None:
    model = small_model()
    model.graph.output.append(onnx.ValueInfoProto(name="b"))
    assert not changed(model, equalise(model))


def test_weights_used_twice_are_left_alone() -> None:
    model = small_model()
    [sides] = [node for node in model.graph.node if node.name == "first_out_node"]
    [uneven] = [node for node in model.graph.node if node.name == "uneven_out_node"]
    sides.input[2] = uneven.input[2]
    assert not changed(model, equalise(model))


def test_equalisation_leaves_the_function_as_it_was(
    tiny_network: Network, size: Size, pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    paths = tmp_path / "float.onnx", tmp_path / "equalised.onnx"
    export_onnx(tiny_network, size, Export(candidates=40, stem="space_to_depth"), paths[0])
    before = onnx.load(paths[0])
    after = equalise(before)
    assert changed(before, after)
    onnx.save(after, paths[1])
    for one, other in zip(onnx_detector(paths[0])(pictures), onnx_detector(paths[1])(pictures), strict=True):
        assert np.abs(one - other).max() <= 1e-4 * max(1, np.abs(one).max())


def shifts(model: ModelProto, reference: ModelProto) -> NDArray[np.float64]:
    """How far the mean of each channel of each convolution is off, `[convolutions, channels]` in one row."""
    outputs = {node.name: node.output[0] for node in model.graph.node if node.op_type == "Conv"}
    wanted = {node.name: node.output[0] for node in Graph(reference).convolutions}
    mine = list(observe(model, list(outputs.values()), IMAGES))
    exact = list(observe(reference, list(wanted.values()), IMAGES))
    return np.concatenate(
        [
            np.mean([a[outputs[name]] - b[wanted[name]] for a, b in zip(mine, exact, strict=True)], axis=(0, 1, 3, 4))
            for name in wanted
        ]
    )


@pytest.mark.parametrize("ranges", ["minmax", "mse"])
def test_bias_correction_brings_the_outputs_back(ranges: str, tmp_path: Path) -> None:
    source = save_small(tmp_path / "float.onnx")
    off = []
    for correct in (False, True):
        target = tmp_path / f"{correct}.onnx"
        options = Quantise.model_validate({"calibration_images": 6, "bias_correction": correct, "ranges": ranges})
        report = quantise_onnx(source, target, lambda: IMAGES, options)
        assert bool(report.bias_shifts) == correct
        off.append(np.abs(shifts(onnx.load(target), onnx.load(source))))
    assert off[1].mean() < 0.5 * off[0].mean()


def test_the_first_convolution_is_corrected_exactly(tmp_path: Path) -> None:
    """Its input is exact, so nothing but its weights shifts it; what is left is the rounding of the bias."""
    source, target = save_small(tmp_path / "float.onnx"), tmp_path / "int8.onnx"
    quantise_onnx(source, target, lambda: IMAGES, Quantise(calibration_images=6, bias_correction=True))
    model = onnx.load(target)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    step = constants["first.weight_scale"].max()
    assert np.abs(shifts(model, onnx.load(source))[:8]).max() <= step
