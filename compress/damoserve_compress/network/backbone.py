"""TinyNAS backbones: the searched stages that turn an image into features at strides 8, 16 and 32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn

from damoserve_compress.network.blocks import ConvBNAct, ConvKXBN, RepConv, SPPBottleneck, activation
from damoserve_compress.network.structures import StageStructure, Structure, StructureError


class Focus(nn.Module):
    """Stem: every 2x2 pixel square becomes 12 channels, then a 3x3 convolution; [N, 3, H, W] -> [N, out, H/2, W/2]."""

    def __init__(self, in_channels: int, out_channels: int, act: str) -> None:
        super().__init__()
        self.conv = ConvBNAct((4 * in_channels, out_channels), 3, act=act)

    def forward(self, x: Tensor) -> Tensor:
        # The corners go down each column first; checkpoints depend on this order.
        corners = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        y: Tensor = self.conv(torch.cat(corners, dim=1))
        return y


class ResConvBlock(nn.Module):
    """Bottleneck convolution, then a RepConv that carries the stride; a stride of 2 has no skip connection."""

    def __init__(self, stage: StageStructure, first: bool, kernel: int, act: str) -> None:
        super().__init__()
        in_channels = stage.in_channels if first else stage.out_channels
        stride = stage.stride if first else 1
        self.conv1 = ConvKXBN(in_channels, stage.bottleneck, kernel)
        self.act1 = activation(act)
        self.conv2 = RepConv(stage.bottleneck, stage.out_channels, stride, act="identity")
        self.residual_proj: nn.Module | None = None
        if stride == 1:
            same = in_channels == stage.out_channels
            self.residual_proj = nn.Identity() if same else ConvKXBN(in_channels, stage.out_channels, 1)
        self.act2 = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.act1(self.conv1(x)))
        if self.residual_proj is not None:
            y = y + self.residual_proj(x)
        out: Tensor = self.act2(y)
        return out


class ResStage(nn.Module):
    """The residual blocks of one stage; the last stage of a backbone pools right after its first block."""

    def __init__(self, stage: StageStructure, kernel: int, act: str, pooled: bool) -> None:
        super().__init__()
        self.block_list = nn.ModuleList(ResConvBlock(stage, index == 0, kernel, act) for index in range(stage.depth))
        if pooled:
            self.block_list.insert(1, SPPBottleneck(stage.out_channels, stage.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block_list:
            x = block(x)
        return x


class TinyNASRes(nn.Module):
    """The residual family (variants T and P): [N, 3, H, W] -> features at strides 8, 16, 32."""

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        act, last = structure.activation, len(structure.stages) - 1
        self.taps = structure.taps
        self.block_list = nn.ModuleList([Focus(3, structure.stem_channels, act)])
        for index, stage in enumerate(structure.stages):
            self.block_list.append(ResStage(stage, structure.bottleneck_kernel, act, pooled=index == last))

    def forward(self, images: Tensor) -> list[Tensor]:
        features = []
        x: Tensor = self.block_list[0](images)
        for index, stage in enumerate(self.block_list[1:]):
            x = stage(x)
            if index in self.taps:
                features.append(x)
        return features


FAMILIES: Final[Mapping[str, Callable[[Structure], nn.Module]]] = MappingProxyType({"res": TinyNASRes})


def build_backbone(structure: Structure) -> nn.Module:
    """The backbone of the structure's family; raises StructureError for a family not in FAMILIES."""
    if structure.family not in FAMILIES:
        raise StructureError(f"unknown family {structure.family!r}, known: {', '.join(FAMILIES)}")
    return FAMILIES[structure.family](structure)
