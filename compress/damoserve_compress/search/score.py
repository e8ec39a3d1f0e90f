"""The entropy score of MAE-NAS (arXiv 2111.13336), by which DAMO-YOLO's backbones were searched.

The variance of what a network of Gaussian weights answers to Gaussian noise grows with every convolution by its fan-in,
so half the logarithm of the product of fan-ins is, but for a constant, the entropy of the answer. BatchNorm and skip
connections are left out. The score ranks structures before they are trained. It is high for many, wide layers, and it
says nothing about what a structure gains from training on a given data set.

A convolution of window k over c channels has the fan-in c k^2 and counts 0.5 ln(c k^2). Variant P as an example:

    stem            3x3 over 12 channels    0.5 ln(12 * 9) = 2.341                          sum  2.341
    first block     1x1 over 16, 3x3 over 16    1.386 + 2.485 = 3.871                       sum  6.212
    second block    1x1 over 32, 3x3 over 16    1.733 + 2.485 = 4.218                       sum 10.430

The entropy of a feature map is the sum up to its last layer plus the logarithm of its width, as a wider map of the same
depth holds more: 10.430 + ln 32 = 13.896 at stride 4, where the first stage ends. The weights of strides 2 and 4 are
zero, for the neck does not read them; those of 8, 16 and 32 have 23.633, 45.756 and 52.112, so that P's score is
23.633 + 45.756 + 16 * 52.112 = 903.18. The last term is nearly all of it: depth is cheapest where maps are small.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Final

from damoserve_compress.network.structures import StageStructure, Structure

WEIGHTS: Final = (0.0, 0.0, 1.0, 1.0, 16.0)
"""The weights of the features at strides 2, 4, 8, 16 and 32 in DAMO-YOLO's search. MAE-DET's last one is 6."""


def entropy_score(structure: Structure, weights: Sequence[float] = WEIGHTS) -> float:
    """Sum over the strides 2 .. 32 of weight x (entropy of all layers up to the last of that stride + ln(its width)).

    The stem is one convolution over the 12 channels of Focus; a block of the families `res` and `csp` is two, its
    bottleneck and its 3x3. As in the reference, `csp` is scored by
    the stages that were searched, before the cross-stage form is put around them.

    Family `mobile` is an extension of ours, by the same rule: the stem reads 3 channels, and a block is three
    convolutions, of which the depthwise one has a fan-in of k^2. Scores of different families do not compare.

    Raises ValueError unless there are five weights.
    """
    if len(weights) != len(WEIGHTS):
        raise ValueError(f"the score needs {len(WEIGHTS)} weights, for strides 2 to 32, not {len(weights)}")
    entropy = _layer(3 if structure.family == "mobile" else 12, 3)
    width = structure.stem_channels
    levels = []
    for stage in structure.stages:
        if stage.stride == 2:
            levels.append(entropy + log(width))
        entropy += sum(_block(block, structure) for block in stage.blocks())
        width = stage.out_channels
    levels.append(entropy + log(width))
    return sum(weight * level for weight, level in zip(weights, levels, strict=True))


def _block(block: StageStructure, structure: Structure) -> float:
    kernel = structure.bottleneck_kernel
    if structure.family == "mobile":
        return _layer(block.in_channels, 1) + _layer(1, kernel) + _layer(block.bottleneck, 1)
    return _layer(block.in_channels, kernel) + _layer(block.bottleneck, 3)


def _layer(channels: int, kernel: int) -> float:
    return 0.5 * log(channels * kernel**2)
