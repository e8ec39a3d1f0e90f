"""Efficient RepGFPN, DAMO-YOLO's feature pyramid (arXiv 2211.15444, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from damoserve_compress.network.blocks import ConvBNAct, DepthwiseConv, InvertedResidual, RepConv
from damoserve_compress.network.structures import StageStructure, Structure, multiple_of_8


class BasicBlock3x3Reverse(nn.Module):
    """RepConv, 3x3 convolution, skip. `conv2` runs first: the names are those of the checkpoints."""

    def __init__(self, channels: int, structure: Structure) -> None:
        super().__init__()
        act = structure.activation
        hidden = int(channels * structure.neck.hidden_ratio)
        self.conv1 = ConvBNAct((hidden, channels), 3, act=act)
        self.conv2 = RepConv(channels, hidden, act=act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv1(self.conv2(x))
        return x + y


class DepthwiseBlock(nn.Module):
    """The mobile counterpart: an inverted residual of width `hidden_ratio` times the block's."""

    def __init__(self, channels: int, structure: Structure) -> None:
        super().__init__()
        hidden = multiple_of_8(math.ceil(channels * structure.neck.hidden_ratio))
        block = StageStructure(channels, channels, bottleneck=hidden, depth=1, stride=1)
        self.conv = InvertedResidual(block, structure.bottleneck_kernel, structure.activation, placeholder=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class CSPStage(nn.Module):
    """Fusion: one half passes by, the other runs through a chain of blocks of which every output is kept."""

    def __init__(self, in_channels: int, out_channels: int, structure: Structure) -> None:
        super().__init__()
        act, neck = structure.activation, structure.neck
        first = out_channels // 2
        middle = out_channels - first
        block = DepthwiseBlock if structure.family == "mobile" else BasicBlock3x3Reverse
        self.conv1 = ConvBNAct((in_channels, first), 1, act=act)
        self.conv2 = ConvBNAct((in_channels, middle), 1, act=act)
        self.convs = nn.ModuleList(block(middle, structure) for _ in range(neck.blocks))
        self.conv3 = ConvBNAct((first + neck.blocks * middle, out_channels), 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.conv1(x)]
        y = self.conv2(x)
        for block in self.convs:
            y = block(y)
            kept.append(y)
        out: Tensor = self.conv3(torch.cat(kept, dim=1))
        return out


def upsample(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 2H, 2W], nearest neighbour."""
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class RepGFPN(nn.Module):
    """Features at strides 8, 16, 32 -> fused features at the same strides, `structure.neck.out_channels` wide.

    `merge_3` and `bu_conv13` mean nodes x3 and edge x1 -> x3 of the paper's figure; registered in checkpoint order.
    """

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        in2, in1, in0 = structure.feature_channels
        out0, out1, out2 = structure.neck.out_channels

        def down(channels: int) -> nn.Module:
            if structure.family == "mobile":
                return DepthwiseConv(channels, 3, stride=2, act=structure.activation)
            return ConvBNAct((channels, channels), 3, stride=2, act=structure.activation)

        self.bu_conv13 = down(in1)
        self.merge_3 = CSPStage(in1 + in0, in0, structure)
        self.bu_conv24 = down(in2)
        self.merge_4 = CSPStage(in2 + in1 + in0, in1, structure)
        self.merge_5 = CSPStage(in1 + in2, out0, structure)
        self.bu_conv57 = down(out0)
        self.merge_7 = CSPStage(out0 + in1, out1, structure)
        self.bu_conv46 = down(in1)
        self.bu_conv76 = down(out1)
        self.merge_6 = CSPStage(in1 + out1 + in0, out2, structure)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        x2, x1, x0 = features
        x3 = self.merge_3(torch.cat((x0, self.bu_conv13(x1)), dim=1))
        x4 = self.merge_4(torch.cat((x1, self.bu_conv24(x2), upsample(x3)), dim=1))
        x5 = self.merge_5(torch.cat((x2, upsample(x4)), dim=1))
        x7 = self.merge_7(torch.cat((x4, self.bu_conv57(x5)), dim=1))
        x6 = self.merge_6(torch.cat((x3, self.bu_conv46(x4), self.bu_conv76(x7)), dim=1))
        return [x5, x7, x6]
