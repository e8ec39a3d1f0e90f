"""The parts that all families share: the stem, the pooled stage, and the way from the image through the stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from damoserve_compress.network.blocks import ConvBNAct, SPPBottleneck
from damoserve_compress.network.structures import StageStructure, Structure


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


class Stage(nn.Module):
    """Blocks one after the other; the last stage of a backbone pools right after its first block."""

    def __init__(self, blocks: Iterable[nn.Module], pooled_channels: int | None) -> None:
        super().__init__()
        self.block_list = nn.ModuleList(blocks)
        if pooled_channels is not None:
            self.block_list.insert(1, SPPBottleneck(pooled_channels, pooled_channels))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block_list:
            x = block(x)
        return x


def build_stages(structure: Structure, build_block: Callable[[StageStructure], nn.Module]) -> Iterator[Stage]:
    """Builds all stages of a structure. `build_block` takes each block as a stage of depth 1."""
    last = len(structure.stages) - 1
    for index, stage in enumerate(structure.stages):
        yield Stage(map(build_block, stage.blocks()), stage.out_channels if index == last else None)


class Backbone(nn.Module):
    """A stem and stages: [N, 3, H, W] -> the outputs of the tapped stages, zero-based, at strides 8, 16, 32.

    `name` is that of the list of both in checkpoints.
    """

    def __init__(self, name: str, modules: Iterable[nn.Module], taps: Sequence[int]) -> None:
        super().__init__()
        self.name = name
        self.taps = tuple(taps)
        self.add_module(name, nn.ModuleList(modules))

    @property
    def parts(self) -> nn.ModuleList:
        """The stem, then the stages."""
        return cast(nn.ModuleList, getattr(self, self.name))

    def forward(self, images: Tensor) -> list[Tensor]:
        features = []
        stem, *stages = self.parts
        x: Tensor = stem(images)
        for index, stage in enumerate(stages):
            x = stage(x)
            if index in self.taps:
                features.append(x)
        return features
