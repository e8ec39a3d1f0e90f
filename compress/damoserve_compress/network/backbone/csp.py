"""The cross-stage partial family: M and L."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from damoserve_compress.network.backbone.res import ResConvBlock
from damoserve_compress.network.backbone.stages import Backbone, Focus
from damoserve_compress.network.blocks import ConvKXBNAct, SPPBottleneck
from damoserve_compress.network.structures import StageStructure, Structure


class CSPWrapper(nn.Module):
    """Downsampling, then half of the channels runs through ResConvBlocks and the other half passes by.

    The downsampling takes the place of the first block of the first stage. The convolutions around the blocks use
    ReLU in every variant, whatever the blocks use; where no block is left there are none.
    """

    def __init__(self, stages: Sequence[StageStructure], structure: Structure, pooled: bool) -> None:
        super().__init__()
        in_channels, out_channels = stages[0].in_channels, stages[0].out_channels
        half = out_channels // 2
        _, *blocks = [block for stage in stages for block in stage.blocks()]
        halved = [replace(block, in_channels=half, out_channels=half) for block in blocks]
        kernel, act = structure.bottleneck_kernel, structure.activation
        self.convstem = nn.ModuleList(ResConvBlock(block, kernel, act) for block in halved)
        self.downsampler = ConvKXBNAct(in_channels, out_channels, 3, stride=2)
        self.spp = SPPBottleneck(out_channels, out_channels) if pooled else nn.Identity()
        if blocks:
            self.conv_start = ConvKXBNAct(out_channels, half, 1)
            self.conv_shortcut = ConvKXBNAct(out_channels, half, 1)
            self.conv_fuse = ConvKXBNAct(out_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.spp(self.downsampler(x))
        if not self.convstem:
            return x
        y = self.conv_start(x)
        for block in self.convstem:
            y = block(y)
        out: Tensor = self.conv_fuse(torch.cat((y, self.conv_shortcut(x)), dim=1))
        return out


def tinynas_csp(structure: Structure) -> Backbone:
    """Focus and one CSPWrapper for every halving; stages without a stride lengthen the one before."""
    groups: list[list[StageStructure]] = []
    for stage in structure.stages:
        if stage.stride == 2:
            groups.append([])
        groups[-1].append(stage)
    stem = Focus(3, structure.stem_channels, structure.activation)
    wrappers = (CSPWrapper(group, structure, pooled=group is groups[-1]) for group in groups)
    # Each wrapper halves, so the last three are those at strides 8, 16 and 32.
    return Backbone("csp_stage", (stem, *wrappers), range(len(groups))[-3:])
