"""From a trained network to the ONNX graph that is served.

ExportError   the graph does not compute what the network computes
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from damoserve_compress.network import Network, fuse
from damoserve_compress.network.reparameterise import merge_focus
from damoserve_compress.network.head import decode_boxes
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import Export

SCORE_TOLERANCE = 1e-3
BOX_TOLERANCE = 5e-2  # pixels


class ExportError(RuntimeError):
    """The exported graph differs from the network."""


class ServedNetwork(nn.Module):
    """The deploy form with its input and output as served.

    Takes images uint8 `[N, H, W, 3]` RGB; gives scores `[N, K, C]` and boxes `[N, K, 4]` (xyxy pixels of the input,
    unclipped) of the K anchors with the best class score, best first. Only these are decoded: a softmax over the
    distributions of all anchors costs a tenth of the small variant's time.
    """

    def __init__(self, network: Network, candidates: int) -> None:
        super().__init__()
        self.network = merge_focus(fuse(network))
        self.candidates = candidates

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.network.raw(images.permute(0, 3, 1, 2).float())
        _, best = raw.class_logits.amax(-1).topk(self.candidates, dim=1)
        rows = best[:, :, None]
        scores = raw.class_logits.gather(1, rows.expand(-1, -1, raw.class_logits.shape[2])).sigmoid()
        flat = raw.box_logits.flatten(2)
        logits = flat.gather(1, rows.expand(-1, -1, flat.shape[2])).unflatten(2, raw.box_logits.shape[2:])
        return scores, decode_boxes(logits, raw.points[best], raw.strides[best])


def export_onnx(network: Network, size: Size, options: Export, path: Path) -> None:
    """Writes the graph with a dynamic batch; the image size is fixed."""
    module = ServedNetwork(network, options.candidates).eval()
    example = torch.zeros(2, size.height, size.width, 3, dtype=torch.uint8)
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        input_names=["images"],
        output_names=["scores", "boxes"],
        dynamic_shapes={"images": {0: torch.export.Dim("n", min=1, max=1024)}},
        opset_version=options.opset,
        optimize=True,
        verbose=False,
    )
    assert program is not None
    program.optimize()
    model = program.model_proto
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
