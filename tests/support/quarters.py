"""A repository of tiny real ONNX models.

The network looks at the four quarters of an image: the box of a quarter has, for each of the labels red, green and
blue, the mean of that colour in the quarter as its score. So every answer shows which image it belongs to and how that
image was turned.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from damoserve_profiles.imaging import ResizeMode
from damoserve_profiles.manifest import MODEL_FILE, Accuracy, InputSpec, Latency, Manifest, Source, Thresholds
from damoserve_profiles.recipe import Recipe
from damoserve_profiles.repository import Repository, describe_file

WIDTH, HEIGHT = 64, 32
LABELS = ("red", "green", "blue")


def quarters_model() -> bytes:
    """The network as an ONNX file."""
    w, h = WIDTH / 2, HEIGHT / 2
    boxes = np.array([[x, y, x + w, y + h] for y in (0, h) for x in (0, w)], np.float32)
    constants = {"scale": np.float32(1 / 255), "zero": np.float32(0), "shape": np.array([0, 3, 4]), "boxes_": boxes}
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "scale"], ["scaled"]),
        helper.make_node("AveragePool", ["scaled"], ["means"], kernel_shape=[int(h), int(w)], strides=[int(h), int(w)]),
        helper.make_node("Reshape", ["means", "shape"], ["by_colour"]),
        helper.make_node("Transpose", ["by_colour"], ["scores"], perm=[0, 2, 1]),
        helper.make_node("ReduceSum", ["scores", "axes"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "boxes_"], ["boxes"]),
    ]
    constants["axes"] = np.array([2])
    graph = helper.make_graph(
        nodes,
        "quarters",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", HEIGHT, WIDTH, 3])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 4, 3]),
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", 4, 4]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def add_profile(
    root: Path,
    profile: str,
    ap: float,
    model: bytes | None = None,
    name: str = "colours",
    *,
    resize: ResizeMode = "stretch",
    version: int = 3,
    labels: tuple[str, ...] = LABELS,
) -> None:
    """Adds a profile to the repository; `model` is the file, if it is not to be the network above."""
    folder = Repository(root).folder(name, version, profile)
    folder.path.mkdir(parents=True)
    folder.model_path.write_bytes(quarters_model() if model is None else model)
    manifest = Manifest(
        model=name,
        version=version,
        profile=profile,
        variant="P",
        labels=labels,
        input=InputSpec(width=WIDTH, height=HEIGHT, resize=resize),
        candidates=4,
        thresholds=Thresholds(score=0.5, nms_iou=0.7, max_detections=100),
        parameters=1,
        macs=2,
        accuracy=Accuracy(dataset="none", images=5, ap=ap, ap50=ap, per_class={}),
        latency=Latency(median_ms=1, p90_ms=1, runs=1, threads=1, cpu="none", instruction_set="none", runtime="none"),
        recipe=Recipe(name=profile),
        source=Source(checkpoint="none", sha256="0" * 64),
        files={MODEL_FILE: describe_file(folder.model_path)},
    )
    folder.write(manifest)
