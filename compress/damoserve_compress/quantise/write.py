"""Writing the 8-bit graph, from a float graph and ranges, by ONNX Runtime's quantiser.

The 8-bit graph is still a graph of float operators, in the form called QDQ. In front of what is to be computed in 8
bits, values are quantised (Q) and at once dequantised (DQ), which rounds them to the 256 steps of their range; weights
are stored in 8 bits with a DQ behind them. At load, ONNX Runtime finds DQ - Conv - Q and runs one QLinearConv instead:

    as written     x -> Q -> DQ --+-> Conv -> Relu -> Q -> DQ -> ...
                   weights -> DQ -+
                   bias (32 bits) -> DQ
    as run         x -> Q -> QLinearConv -> ... in 8 bits to the next operator

A value x of a tensor with the range 0 .. 6 has the scale 6 / 255 = 0.0235 and the zero point 0; 1.5 is stored as
round(1.5 / 0.0235) = 64 and comes back as 1.506. Where any Q or DQ is missing around a convolution, that one runs in
float, between two conversions, and may be slower than before: `_check_fused` counts them in the graph that was loaded.

The quantiser is given the ranges, as if it had calibrated itself, and three things are done to what it writes:

*  Pixels. The graph begins with a Cast of uint8 to float, which the quantiser follows with a Q back to uint8. With
   scale 1 and zero point 0 both change nothing: `_take_pixels_directly` removes them, so that the first DQ reads the
   image itself. OpenVINO keeps them, with a scale just above 1, for a reason told at `_PIXEL_SCALE`.
*  Float convolutions. A convolution that is to stay in float stands between 8-bit ones, and ONNX Runtime would quantise
   it after all, coarsely. `_keep_float` hides its bias behind a DQ.
*  Biases. What 8 bits shift a convolution's mean output by is put into its bias by `_with_shifts`, before the quantiser
   sees the graph. Convolutions may share their weights and bias but not their shifts, so each gets a bias of its own.
"""

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

from damoserve_compress.measure.runtime import open_session
from damoserve_compress.quantise.errors import QuantisationError
from damoserve_compress.quantise.graph import ConvolutionGroup, Graph, drop_unused
from damoserve_profiles.runtimes import EngineName

OperatorSet = Literal["all", "conv", "conv+concat"]
# Without ReLU, which an 8-bit convolution does at no cost, each would end in float.
_OPERATORS: Mapping[OperatorSet, list[str]] = {"conv": ["Conv", "Relu"], "conv+concat": ["Concat", "Conv", "Relu"]}

# Pixels are whole numbers from 0 to 255: with a scale of 1 they pass without any loss. OpenVINO drops a step that
# changes nothing, and with it the 8 bits of what follows; so little more than 1 rounds to the same whole numbers.
_PIXEL_SCALE: Final[Mapping[EngineName, float]] = {"onnxruntime": 1.0, "openvino": 1 + 2**-20}


@dataclass(frozen=True)
class QuantisationPlan:
    """The settings that, with the float graph, determine an 8-bit graph."""

    ranges: Mapping[str, tuple[float, float]]
    """The range of each activation that has one of its own, by name."""
    reduce_range: bool
    operators: OperatorSet = "all"
    shifts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """The shifts `[channels]` added to the biases of convolutions in 8 bits, by the names of the convolutions."""
    engine: EngineName = "onnxruntime"
    """The engine that the graph is made for."""


def write_quantised(
    graph: Graph, plan: QuantisationPlan, target: Path, floating: Collection[ConvolutionGroup] = ()
) -> None:
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


def _with_shifts(graph: Graph, plan: QuantisationPlan, kept: Collection[str]) -> ModelProto:
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
