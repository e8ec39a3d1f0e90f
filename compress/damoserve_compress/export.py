"""Export: the ONNX graph that is served, made from a trained network and compared with it.

ExportError   the graph does not compute what the network computes
"""

import ast
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn

from damoserve_compress.measure.evaluate import Detector
from damoserve_compress.network import Network, fuse
from damoserve_compress.network.head import decode_boxes
from damoserve_compress.network.reparameterise import fold_scales, stem_over_pixels, stem_over_squares
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import Export


class Tolerance(NamedTuple):
    """The difference that two answers may have."""

    score: float
    box: float
    """The largest difference of a box's side, in pixels."""


# float32 kernels sum in another order than torch's: differences of these sizes are rounding.
ROUNDING: Final = Tolerance(score=1e-3, box=0.05)


class ExportError(RuntimeError):
    """The exported graph differs from the network."""


class ServedNetwork(nn.Module):
    """The deploy form with its input and output as served.

    Takes images uint8 `[N, H, W, 3]` RGB; gives scores `[N, K, C]` and boxes `[N, K, 4]` (xyxy pixels of the input,
    unclipped) of the K anchors with the best class score, best first. Only these are decoded: a softmax over the
    distributions of all anchors costs a tenth of the small variant's time.
    """

    def __init__(self, network: Network, options: Export) -> None:
        super().__init__()
        self.squares = options.stem == "space_to_depth"
        self.network = fold_scales((stem_over_squares if self.squares else stem_over_pixels)(fuse(network)))
        self.options = options

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = _squares(images) if self.squares else images
        features = self.network.backbone(pixels.permute(0, 3, 1, 2).float())
        raw = self.network.head(self.network.neck(features))
        candidates = min(self.options.candidates, raw.class_logits.shape[1])
        _, best = raw.class_logits.amax(-1).topk(candidates, dim=1)
        rows = best[:, :, None]
        scores = raw.class_logits.gather(1, rows.expand(-1, -1, raw.class_logits.shape[2])).sigmoid()
        flat = raw.box_logits.flatten(2)
        logits = flat.gather(1, rows.expand(-1, -1, flat.shape[2])).unflatten(2, raw.box_logits.shape[2:])
        return scores, decode_boxes(logits, raw.points[best], raw.strides[best])


def _squares(images: Tensor) -> Tensor:
    """`[N, H, W, 3]` -> `[N, H/2, W/2, 12]`, the pixels of each 2x2 square by (row, column, colour)."""
    count, height, width, channels = images.shape
    rows = images.reshape(count, height // 2, 2, width // 2 * 2 * channels)
    # Split and laid side by side: ONNX Runtime transposes such small pieces at a third of the speed.
    pairs = [row.reshape(count, height // 2, width // 2, 2 * channels) for row in torch.split(rows, 1, dim=2)]
    return torch.cat(pairs, dim=-1)


def export_onnx(network: Network, size: Size, options: Export, path: Path) -> None:
    """Writes the graph with a dynamic batch; the image size is fixed."""
    served = ServedNetwork(network, options)
    onnx.save(make_graph(served, size, ("scores", "boxes"), options.opset), path)


def make_graph(served: nn.Module, size: Size, outputs: Sequence[str], opset: int, dynamic: bool = True) -> ModelProto:
    """The graph of a module that takes uint8 `[N, H, W, 3]`, for any N, or else for one image.

    Nodes are named by the layers they come from.
    """
    example = torch.zeros(2 if dynamic else 1, size.height, size.width, 3, dtype=torch.uint8)
    with _quiet_exporter():
        program = torch.onnx.export(
            served.eval(),
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=outputs,
            dynamic_shapes={"images": {0: torch.export.Dim("n", min=1, max=1024)}} if dynamic else None,
            opset_version=opset,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _name_layers(model)
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    return model


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silences what nobody can act on: deprecated calls inside the exporter, and the absence of torchvision."""
    logger = logging.getLogger("torch.onnx._internal.exporter")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=FutureWarning)
            warnings.simplefilter("ignore", category=DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def _name_layers(model: ModelProto) -> None:
    """Names each node by its layer, such as `network.neck.merge_3.conv1/Conv_17`, as the exporter noted it."""
    for index, node in enumerate(model.graph.node):
        notes = {note.key: note.value for note in node.metadata_props}
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        layer = scopes[-2] if len(scopes) > 1 else ""
        node.name = f"{layer or 'served'}/{node.op_type}_{index}"


def _strip(model: ModelProto) -> None:
    """Removes the exporter's notes: they hold paths of the machine, and as many bytes as a pruned 8-bit network."""
    model.ClearField("metadata_props")
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def check_batches(detector: Detector, images: NDArray[np.uint8]) -> None:
    """Compares the answers for a batch of images `[N, H, W, 3]` with those for its images one by one.

    Raises ExportError.
    """
    for index, answer in enumerate(zip(*detector(images), strict=True)):
        single = detector(images[index : index + 1])
        _compare("a batch", answer, (single[0][0], single[1][0]), ROUNDING)


def check_parity(
    detector: Detector, network: Network, images: NDArray[np.uint8], tolerance: Tolerance = ROUNDING
) -> None:
    """Compares an exported float graph with the network it came from, on images `[N, H, W, 3]`.

    Every candidate must be one of the network's anchors, and the best scores must be the network's best. Raises
    ExportError.
    """
    with torch.inference_mode():
        expected = network.eval()(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    for answer, anchors in zip(zip(*detector(images), strict=True), zip(*expected, strict=True), strict=True):
        _compare("the graph", answer, (anchors[0].numpy(), anchors[1].numpy()), tolerance)


Answer = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Scores `[K, C]` and boxes `[K, 4]` of one image."""


def _compare(what: str, answer: Answer, reference: Answer, tolerance: Tolerance) -> None:
    """Matches each of the answer's candidates with one of the reference, wherever near-equal scores have put it."""
    (scores, boxes), (expected_scores, expected_boxes) = answer, reference
    best = np.sort(expected_scores.max(1))[-len(scores) :]
    _require(f"best scores of {what}", np.abs(np.sort(scores.max(1)) - best).max(), tolerance.score)
    distances = np.abs(boxes[:, None] - expected_boxes[None]).max(2)
    distances[np.abs(scores[:, None] - expected_scores[None]).max(2) > tolerance.score] = np.inf
    _require(f"boxes of {what}", distances.min(1).max(), tolerance.box)


def _require(what: str, difference: float, tolerance: float) -> None:
    if not difference <= tolerance:  # so written, it refuses NaN too
        raise ExportError(f"{what} differ by {difference:.2g}, more than {tolerance:.2g}")
