"""Static 8-bit quantisation for ONNX Runtime on CPUs.

QDQ with QUInt8 activations and QInt8 weights per channel: the only combination that ONNX Runtime fuses into 8-bit
kernels on x86 (with its default, signed activations, nothing fuses and the graph is slower than fp32). Every operator
up to the head's convolutions is quantised, so that no float island costs a round trip; everything behind them stays
float.

QuantisationError   the graph is not one of ours, or a convolution would still run in float
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from damoserve_compress.session import open_session
from damoserve_profiles.recipe import Quantise


class QuantisationError(RuntimeError):
    """The quantised graph does not run as intended."""


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands out one image at a time: of each, only the least and greatest value of every tensor are kept."""

    def __init__(self, images: Iterable[NDArray[np.uint8]]) -> None:
        self._images: Iterator[NDArray[np.uint8]] = iter(images)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        image = next(self._images, None)
        return None if image is None else {"images": image[None]}


def quantise_onnx(source: Path, target: Path, images: Iterable[NDArray[np.uint8]], options: Quantise) -> None:
    """Writes the 8-bit form of `source`.

    `images` are calibration images as the network gets them, uint8 `[H, W, 3]`; at most `options.calibration_images`
    are read. Raises QuantisationError when not every convolution runs in 8 bits.
    """
    model = onnx.load(source)
    cast = _input_cast(model)
    # The mark of ONNX Runtime's own preparation, which would find nothing left to fold: without it, it warns.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    quantize_static(
        model,
        target,
        _Reader(islice(images, options.calibration_images)),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=options.reduce_range,
        calibrate_method=CalibrationMethod.MinMax,
        nodes_to_exclude=sorted(_behind_the_head(model)),
        # Pixels are whole numbers from 0 to 255: with this scale they pass without any loss.
        extra_options={
            "TensorQuantOverrides": {
                cast.output[0]: [{"scale": np.array(1, np.float32), "zero_point": np.array(0, np.uint8)}]
            }
        },
    )
    quantised = onnx.load(target)
    quantised.ClearField("metadata_props")
    _take_pixels_directly(quantised, cast.name)
    onnx.checker.check_model(quantised, full_check=True)
    onnx.save(quantised, target)
    _check_fused(target)


def _behind_the_head(model: ModelProto) -> set[str]:
    """Names of all nodes that depend on a head convolution, which are those that no other convolution follows."""
    consumers = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            consumers[name].append(node)

    def followers(node: NodeProto) -> dict[str, NodeProto]:
        found: dict[str, NodeProto] = {}
        waiting = [node]
        while waiting:
            for output in waiting.pop().output:
                fresh = [follower for follower in consumers[output] if follower.name not in found]
                found |= {follower.name: follower for follower in fresh}
                waiting += fresh
        return found

    behind: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Conv":
            after = followers(node)
            if all(follower.op_type != "Conv" for follower in after.values()):
                behind |= after.keys()
    return behind


def _input_cast(model: ModelProto) -> NodeProto:
    """The one operator through which pixels become floats, whatever moves them about before."""
    pixels = {"images"}
    for node in model.graph.node:
        if pixels & set(node.input):
            if node.op_type == "Cast":
                return node
            if node.op_type not in ("Reshape", "Transpose", "Split", "Concat"):
                break
            pixels |= set(node.output)
    raise QuantisationError("the graph does not begin with a cast of uint8 images to float")


def _take_pixels_directly(model: ModelProto, cast_name: str) -> None:
    """Drops the way uint8 -> float -> uint8: the pixels are already quantised."""
    cast = next(node for node in model.graph.node if node.name == cast_name)
    consumers = [node for node in model.graph.node if cast.output[0] in node.input]
    if [node.op_type for node in consumers] != ["QuantizeLinear"]:
        raise QuantisationError("the images are not only quantised after their cast to float")
    [quantise] = consumers
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == quantise.output[0]:
                node.input[index] = cast.input[0]
    model.graph.node.remove(cast)
    model.graph.node.remove(quantise)


def _check_fused(path: Path) -> None:
    """Raises QuantisationError unless ONNX Runtime's optimised graph runs every convolution as QLinearConv."""
    with TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        open_session(path, optimised=optimised)
        operators = [node.op_type for node in onnx.load(optimised).graph.node]
    floating = sum(operator in ("Conv", "FusedConv") for operator in operators)
    if floating or "QLinearConv" not in operators:
        raise QuantisationError(f"{floating} of {floating + operators.count('QLinearConv')} convolutions stay in float")
