"""The residual family: T, S and P."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from damoserve_compress.network.backbone.stages import Backbone, Focus, build_stages
from damoserve_compress.network.blocks import ConvKXBN, RepConv, activation
from damoserve_compress.network.structures import StageStructure, Structure


class ResConvBlock(nn.Module):
    """Bottleneck convolution, then a RepConv that carries the stride; a stride of 2 has no skip connection."""

    def __init__(self, block: StageStructure, kernel: int, act: str) -> None:
        super().__init__()
        self.conv1 = ConvKXBN(block.in_channels, block.bottleneck, kernel)
        self.act1 = activation(act)
        self.conv2 = RepConv(block.bottleneck, block.out_channels, block.stride, act="identity")
        self.residual_proj: nn.Module | None = None
        if block.stride == 1:
            same = block.in_channels == block.out_channels
            self.residual_proj = nn.Identity() if same else ConvKXBN(block.in_channels, block.out_channels, 1)
        self.act2 = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.act1(self.conv1(x)))
        if self.residual_proj is not None:
            y = y + self.residual_proj(x)
        out: Tensor = self.act2(y)
        return out


def tinynas_res(structure: Structure) -> Backbone:
    """Focus and stages of ResConvBlocks."""
    stem = Focus(3, structure.stem_channels, structure.activation)
    block = partial(ResConvBlock, kernel=structure.bottleneck_kernel, act=structure.activation)
    return Backbone("block_list", (stem, *build_stages(structure, block)), structure.taps)
