"""From a float graph and ranges to the 8-bit graph, by ONNX Runtime's quantiser."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static, save_tensors_data
from onnxruntime.quantization.calibrate import TensorData, TensorsData

from damoserve_compress.quantise.errors import QuantisationError
from damoserve_compress.quantise.graph import Graph, Group, drop_unused
from damoserve_compress.session import open_session
from damoserve_profiles.runtimes import EngineName

OperatorSet = Literal["all", "conv", "conv+concat"]
# Without ReLU, which an 8-bit convolution does at no cost, each would end in float.
_OPERATORS: Mapping[OperatorSet, list[str]] = {"conv": ["Conv", "Relu"], "conv+concat": ["Concat", "Conv", "Relu"]}

# Pixels are whole numbers from 0 to 255: with a scale of 1 they pass without any loss. OpenVINO drops a step that
# changes nothing, and with it the 8 bits of what follows; so little more than 1 rounds to the same whole numbers.
_PIXEL_SCALE: Final[Mapping[EngineName, float]] = {"onnxruntime": 1.0, "openvino": 1 + 2**-20}


@dataclass(frozen=True)
class Plan:
    """All that says what an 8-bit graph is, besides the float graph."""

    ranges: Mapping[str, tuple[float, float]]
    """By the names of the activations that have one of their own."""
    reduce_range: bool
    operators: OperatorSet = "all"
    shifts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """By the names of convolutions `[channels]`: what is added to the bias where it is in 8 bits."""
    engine: EngineName = "onnxruntime"
    """What the graph is for."""


def write_quantised(graph: Graph, plan: Plan, target: Path, floating: Collection[Group] = ()) -> None:
    """Writes the 8-bit form of a graph, with the groups `floating` left in float.

    QDQ with QUInt8 activations and QInt8 weights per channel. Raises QuantisationError when ONNX Runtime would run any
    other convolution in float, or one of those in 8 bits.
    """
    kept = {name for group in floating for name in group.nodes}
    model = _with_shifts(graph, plan, kept)
    pixels = {"scale": np.array(_PIXEL_SCALE[plan.engine], np.float32), "zero_point": np.array(0, np.uint8)}
    quantised = quantise_with_ranges(
        model,
        tensors_data(graph, {**plan.ranges, graph.cast.output[0]: (0.0, 255.0)}),
        target,
        op_types_to_quantize=_OPERATORS.get(plan.operators),
        activation_type=QuantType.QUInt8,
        reduce_range=plan.reduce_range,
        nodes_to_exclude=sorted(graph.behind | kept),
        extra_options={"TensorQuantOverrides": {graph.cast.output[0]: [pixels]}},
    )
    if plan.engine == "onnxruntime":
        _take_pixels_directly(quantised, graph.cast.name)
    _keep_float(quantised, kept)
    onnx.checker.check_model(quantised, full_check=True)
    onnx.save(quantised, target)
    _check_fused(target, len(graph.convolutions), sum(len(group.convolutions) for group in floating))


def _with_shifts(graph: Graph, plan: Plan, kept: Collection[str]) -> ModelProto:
    model = ModelProto()
    model.CopyFrom(graph.model)
    for node in model.graph.node:
        if node.name not in plan.shifts or node.name in kept:
            continue
        before = graph.weights(node.input[2]) if len(node.input) > 2 else 0
        name = f"{node.name}.corrected_bias"
        model.graph.initializer.append(numpy_helper.from_array(before + plan.shifts[node.name], name))
        del node.input[2:]
        node.input.append(name)
    drop_unused(model)
    return model


def quantise_with_ranges(model: ModelProto, ranges: TensorsData, target: Path, **options: Any) -> ModelProto:
    """The QDQ form of a graph with weights QInt8 per channel, by ONNX Runtime's quantiser, which writes to `target`.

    `options` are those of `quantize_static`.
    """
    # The mark of ONNX Runtime's own preparation, which would find nothing left to fold: without it, it warns.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with TemporaryDirectory() as folder:
        cache = Path(folder) / "ranges.json"
        save_tensors_data(ranges, cache)
        quantize_static(
            model,
            target,
            None,
            quant_format=QuantFormat.QDQ,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=CalibrationMethod.MinMax,
            calibration_cache_path=cache,
            **options,
        )
    quantised = onnx.load(target)
    quantised.ClearField("metadata_props")
    return quantised


def tensors_data(graph: Graph, bounds: Mapping[str, tuple[float, float]]) -> TensorsData:
    """Ranges as ONNX Runtime takes them: of every activation those of its source, which `bounds` has by name."""
    ranges = {name: np.array(bounds[source], np.float32) for name, source in graph.sources.items()}
    data = {name: TensorData(lowest=low, highest=high) for name, (low, high) in ranges.items()}
    return TensorsData(CalibrationMethod.MinMax, data)


def _take_pixels_directly(model: ModelProto, cast_name: str) -> None:
    """Drops the way uint8 -> float -> uint8: the pixels are already quantised."""
    cast = next(node for node in model.graph.node if node.name == cast_name)
    consumers = [node for node in model.graph.node if cast.output[0] in node.input]
    if all(node.op_type != "QuantizeLinear" for node in consumers):
        return  # what reads them stays in float
    if len(consumers) > 1:
        raise QuantisationError("the images are not only quantised after their cast to float")
    [quantise] = consumers
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == quantise.output[0]:
                node.input[index] = cast.input[0]
    model.graph.node.remove(cast)
    model.graph.node.remove(quantise)


def _keep_float(model: ModelProto, kept: Collection[str]) -> None:
    """Stops ONNX Runtime from quantising float convolutions between 8-bit ones itself, with one scale for all weights.

    It does so at load (`WeightBiasQuantization`) where weights and bias are constants. A bias that is dequantised from
    32 bits is as exact as a float one, but not a constant to it.
    """
    for node in [node for node in model.graph.node if node.op_type == "Conv" and node.name in kept]:
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        bias = constants[node.input[2]] if len(node.input) > 2 else np.zeros(len(constants[node.input[1]]), np.float32)
        scale = np.float32(2.0 ** (np.frexp(np.abs(bias).max())[1] - 30))
        name = f"{node.name}.float_bias"
        stored = {f"{name}_quantized": np.rint(bias / scale).astype(np.int32), f"{name}_scale": np.array(scale)}
        model.graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in stored.items())
        del node.input[2:]
        node.input.append(name)
        model.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", list(stored), [name], name=name))
    drop_unused(model)


def _check_fused(path: Path, convolutions: int, floating: int) -> None:
    """Raises QuantisationError unless ONNX Runtime's optimised graph runs all but `floating` ones as QLinearConv."""
    with TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        open_session(path, optimised=optimised)
        operators = [node.op_type for node in onnx.load(optimised).graph.node]
    found = convolutions - operators.count("QLinearConv")
    if found != floating:
        raise QuantisationError(f"{found} of {convolutions} convolutions stay in float, instead of {floating}")
