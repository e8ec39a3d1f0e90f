"""The assembled detector."""

from __future__ import annotations

from typing import Final, Literal

from torch import Tensor, nn

from damoserve_compress.network.backbone import build_backbone
from damoserve_compress.network.head import RawPredictions, ZeroHead
from damoserve_compress.network.neck import RepGFPN
from damoserve_compress.network.structures import STRIDES, Structure, find_structure


class Network(nn.Module):
    """DAMO-YOLO. Takes images [N, 3, H, W], float RGB 0 .. 255 without normalisation, H and W multiples of 32.

    Answers RawPredictions in training mode; in evaluation mode scores [N, A, C] and boxes [N, A, 4] (xyxy pixels
    of the input, not clipped).
    """

    strides: Final = STRIDES

    def __init__(self, structure: Structure, num_classes: int) -> None:
        super().__init__()
        self.structure = structure
        self.num_classes = num_classes
        self.backbone = build_backbone(structure)
        self.neck = RepGFPN(structure)
        self.head = ZeroHead(structure, num_classes)
        self._initialise()

    @property
    def variant(self) -> str:
        return self.structure.name

    @property
    def reg_max(self) -> int:
        return self.structure.reg_max

    def features(self, images: Tensor) -> list[Tensor]:
        """The three neck outputs. Raises ValueError for a size that is no multiple of 32."""
        height, width = images.shape[-2:]
        if height % STRIDES[-1] or width % STRIDES[-1]:
            raise ValueError(f"height and width must be multiples of {STRIDES[-1]}, got {height}x{width}")
        fused: list[Tensor] = self.neck(self.backbone(images))
        return fused

    def raw(self, images: Tensor) -> RawPredictions:
        """Undecoded predictions in either mode."""
        predictions: RawPredictions = self.head(self.features(images))
        return predictions

    def forward(self, images: Tensor) -> RawPredictions | tuple[Tensor, Tensor]:
        raw = self.raw(images)
        return raw if self.training else self.head.decode(raw)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # PyTorch reckons the fan-out of a depthwise weight as if every output saw all channels.
                mode: Literal["fan_in", "fan_out"] = "fan_out" if module.groups == 1 else "fan_in"
                nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
        self.head.initialise()


def build_network(variant: str | Structure, num_classes: int = 80) -> Network:
    """An untrained network of a variant, by its name or that of a structure file, or of a structure.

    Raises StructureError for a name that neither has, or a file that holds no structure.
    """
    structure = find_structure(variant) if isinstance(variant, str) else variant
    return Network(structure, num_classes)
