"""The convolutions that a structure's deploy form is made of, without building it.

A search asks for them thousands of times a second. That they are those of the built network is what the tests check:
parameters and operations counted from this list equal `complexity` of the network, for every family.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from damoserve_compress.network.structures import STRIDES, StageStructure, Structure, multiple_of_8
from damoserve_profiles.imaging import Size


class ConvolutionKind(NamedTuple):
    """Convolutions that one kernel of a runtime computes. Those over an image have 3 channels and pixels for input."""

    kernel: int
    stride: int
    form: str = "dense"
    """`dense`, `depthwise` or `image`."""

    def __str__(self) -> str:
        return f"{self.form} {self.kernel}x{self.kernel}/{self.stride}"


class Convolution(NamedTuple):
    """A biased convolution; `height` and `width` are those of its output."""

    kind: ConvolutionKind
    in_channels: int
    out_channels: int
    height: int
    width: int

    @property
    def weights(self) -> int:
        fan_in = 1 if self.kind.form == "depthwise" else self.in_channels
        return fan_in * self.out_channels * self.kind.kernel**2

    @property
    def parameters(self) -> int:
        return self.weights + self.out_channels

    @property
    def macs(self) -> int:
        return self.weights * self.height * self.width


class FeatureMap(NamedTuple):
    """A feature map of an image of `size`, by its stride against the image."""

    size: Size
    stride: int

    def conv(self, taken: int, given: int, kernel: int, stride: int = 1, form: str = "dense") -> Convolution:
        """A convolution whose output is this map."""
        height, width = self.size.height // self.stride, self.size.width // self.stride
        return Convolution(ConvolutionKind(kernel, stride, form), taken, given, height, width)

    def depthwise(self, channels: int, kernel: int, stride: int = 1) -> Convolution:
        return self.conv(channels, channels, kernel, stride, "depthwise")


def convolutions(structure: Structure, size: Size, num_classes: int) -> Iterator[Convolution]:
    """Lists the convolutions of backbone, neck and head for one image, in any order."""
    yield from _backbone(structure, size)
    yield from _neck(structure, size)
    sides = 4 * (structure.reg_max + 1)
    for width, stride in zip(structure.neck.out_channels, STRIDES, strict=True):
        for given in (num_classes, sides):
            yield FeatureMap(size, stride).conv(width, given, structure.head_kernel)


def depth(structure: Structure) -> int:
    """Convolutions of the backbone one after the other, as searches count them: without projections and pooling."""
    per_block = 3 if structure.family == "mobile" else 2
    return 1 + per_block * sum(stage.depth for stage in structure.stages)


def _backbone(structure: Structure, size: Size) -> Iterator[Convolution]:
    # Exported, Focus and its 3x3 convolution are one of window 6 over the pixels.
    window = 3 if structure.family == "mobile" else 6
    yield FeatureMap(size, 2).conv(3, structure.stem_channels, window, 2, "image")
    stages = _csp_stages if structure.family == "csp" else _plain_stages
    yield from stages(structure, size)
    coarse = structure.stages[-1].out_channels
    yield FeatureMap(size, STRIDES[-1]).conv(coarse, coarse // 2, 1)
    yield FeatureMap(size, STRIDES[-1]).conv(4 * (coarse // 2), coarse, 1)


def _plain_stages(structure: Structure, size: Size) -> Iterator[Convolution]:
    kernel, stride = structure.bottleneck_kernel, 2
    build = _inverted if structure.family == "mobile" else _residual
    for stage in structure.stages:
        for block in stage.blocks():
            taken, stride = FeatureMap(size, stride), stride * block.stride
            yield from build(block, kernel, taken, FeatureMap(size, stride))


def _csp_stages(structure: Structure, size: Size) -> Iterator[Convolution]:
    stride = 2
    for index, stage in enumerate(structure.stages):
        width, half, depth = stage.out_channels, stage.out_channels // 2, stage.depth
        if stage.stride == 2:
            stride *= 2
            yield FeatureMap(size, stride).conv(stage.in_channels, width, 3, 2)
            depth -= 1  # the downsampling stands for the first block
            following = structure.stages[index + 1 : index + 2]
            if depth or (following and following[0].stride == 1):
                yield from [FeatureMap(size, stride).conv(width, half, 1)] * 2
                yield FeatureMap(size, stride).conv(width, width, 1)
        block = StageStructure(half, half, stage.bottleneck, depth=1, stride=1)
        level = FeatureMap(size, stride)
        yield from list(_residual(block, structure.bottleneck_kernel, level, level)) * depth


def _residual(block: StageStructure, kernel: int, taken: FeatureMap, given: FeatureMap) -> Iterator[Convolution]:
    yield taken.conv(block.in_channels, block.bottleneck, kernel)
    yield given.conv(block.bottleneck, block.out_channels, 3, block.stride)
    if block.stride == 1 and block.in_channels != block.out_channels:
        yield given.conv(block.in_channels, block.out_channels, 1)


def _inverted(block: StageStructure, kernel: int, taken: FeatureMap, given: FeatureMap) -> Iterator[Convolution]:
    yield taken.conv(block.in_channels, block.bottleneck, 1)
    yield given.depthwise(block.bottleneck, kernel, block.stride)
    yield given.conv(block.bottleneck, block.out_channels, 1)


def _neck(structure: Structure, size: Size) -> Iterator[Convolution]:
    in2, in1, in0 = structure.feature_channels
    out0, out1, out2 = structure.neck.out_channels
    fine, middle, coarse = (FeatureMap(size, stride) for stride in STRIDES)
    for level, width in ((coarse, in1), (middle, in2), (middle, out0), (coarse, in1), (coarse, out1)):
        if structure.family == "mobile":
            yield level.depthwise(width, 3, 2)
            yield level.conv(width, width, 1)
        else:
            yield level.conv(width, width, 3, 2)
    yield from _fusion(structure, coarse, in1 + in0, in0)
    yield from _fusion(structure, middle, in2 + in1 + in0, in1)
    yield from _fusion(structure, fine, in1 + in2, out0)
    yield from _fusion(structure, middle, out0 + in1, out1)
    yield from _fusion(structure, coarse, in1 + out1 + in0, out2)


def _fusion(structure: Structure, level: FeatureMap, taken: int, given: int) -> Iterator[Convolution]:
    neck, first = structure.neck, given // 2
    middle = given - first
    yield level.conv(taken, first, 1)
    yield level.conv(taken, middle, 1)
    if structure.family == "mobile":
        hidden = multiple_of_8(math.ceil(middle * neck.hidden_ratio))
        wide = StageStructure(middle, middle, bottleneck=hidden, depth=1, stride=1)
        block = list(_inverted(wide, structure.bottleneck_kernel, level, level))
    else:
        hidden = int(middle * neck.hidden_ratio)
        block = [level.conv(middle, hidden, 3), level.conv(hidden, middle, 3)]
    yield from block * neck.blocks
    yield level.conv(first + neck.blocks * middle, given, 1)
