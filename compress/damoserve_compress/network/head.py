"""ZeroHead: one convolution per level and task, and the decoding of its box distributions.

Box sides are discrete distributions over 0 .. reg_max strides (generalised focal loss, arXiv 2006.04388); their
expectation is the distance of the side from the grid point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from damoserve_compress.network.structures import STRIDES, Structure

_PRIOR_BIAS: Final = -math.log(1 / 0.01 - 1)  # untrained scores start at 0.01, so that negatives do not drown the loss


class RawPredictions(NamedTuple):
    """The head's raw outputs, which losses need. A anchors: levels 8, 16, 32 one after the other, each row-major.

    class_logits [N, A, C]; box_logits [N, A, 4, reg_max + 1], sides left, top, right, bottom;
    points [A, 2] x and y in pixels, the grid corners; strides [A] in pixels.
    """

    class_logits: Tensor
    box_logits: Tensor
    points: Tensor
    strides: Tensor


def expectation(box_logits: Tensor, project: Tensor) -> Tensor:
    """Mean of the softmax distributions [..., bins] over the values `project` [bins] -> [...]; at least float32."""
    dtype = torch.promote_types(box_logits.dtype, torch.float32)
    # Not a matrix product: runtimes have no kernel for one this thin, and spend ten times as long on it.
    return (box_logits.to(dtype).softmax(dim=-1) * project.to(dtype)).sum(dim=-1)


def distances_to_boxes(distances: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Left, top, right, bottom distances [..., A, 4] in strides -> xyxy pixels [..., A, 4], not clipped."""
    pixels = distances * strides.unsqueeze(-1)
    left_top, right_bottom = pixels.chunk(2, dim=-1)
    return torch.cat((points - left_top, points + right_bottom), dim=-1)


def decode_boxes(box_logits: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Box logits [..., A, 4, bins] -> xyxy pixels [..., A, 4]; points [(...,) A, 2], strides [(...,) A]."""
    bins = torch.arange(box_logits.shape[-1], device=box_logits.device, dtype=torch.float32)
    return distances_to_boxes(expectation(box_logits, bins), points, strides)


def make_priors(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Points [A, 2] and strides [A] of the levels' feature maps [N, C, H, W]; float32 whatever the maps are.

    Made anew from the shapes at every call: cached ones would tie a traced network to one batch size.
    """
    points, strides = [], []
    for stride, level in zip(STRIDES, maps, strict=True):
        height, width = level.shape[-2:]
        y, x = torch.meshgrid(
            torch.arange(height, device=level.device, dtype=torch.float32) * stride,
            torch.arange(width, device=level.device, dtype=torch.float32) * stride,
            indexing="ij",
        )
        points.append(torch.stack((x, y), dim=-1).flatten(0, 1))
        strides.append(torch.full_like(points[-1][:, 0], float(stride)))
    return torch.cat(points), torch.cat(strides)


class Integral(nn.Module):
    """Holds the values 0 .. reg_max of the box distributions, which are part of published checkpoints."""

    project: Tensor

    def __init__(self, reg_max: int) -> None:
        super().__init__()
        self.register_buffer("project", torch.arange(reg_max + 1, dtype=torch.float32))


class Scale(nn.Module):
    """A learned factor, one for each level."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class ZeroHead(nn.Module):
    """Neck outputs -> RawPredictions."""

    def __init__(self, structure: Structure, num_classes: int) -> None:
        super().__init__()
        kernel, sides = structure.head_kernel, 4 * (structure.reg_max + 1)
        widths = structure.neck.out_channels
        self.integral = Integral(structure.reg_max)
        self.gfl_cls = _predictors(widths, num_classes, kernel)
        self.gfl_reg = _predictors(widths, sides, kernel)
        self.scales = nn.ModuleList(Scale() for _ in STRIDES)

    def initialise(self) -> None:
        """Small weights, and class scores that start at 0.01."""
        _initialise(self.gfl_cls, _PRIOR_BIAS)
        _initialise(self.gfl_reg, 0.0)

    def replace_classes(self, num_classes: int) -> None:
        """Fresh class predictors for another set of labels; all else stays."""
        first = self.gfl_reg[0]
        assert isinstance(first, nn.Conv2d)
        widths = [conv.in_channels for conv in self.gfl_reg if isinstance(conv, nn.Conv2d)]
        self.gfl_cls = _predictors(widths, num_classes, first.kernel_size[0])
        _initialise(self.gfl_cls, _PRIOR_BIAS)

    def forward(self, features: Sequence[Tensor]) -> RawPredictions:
        levels = range(len(features))
        class_maps = [self.gfl_cls[level](features[level]) for level in levels]
        box_maps = [self.scales[level](self.gfl_reg[level](features[level])) for level in levels]
        points, strides = make_priors(class_maps)
        box_logits = torch.unflatten(_flatten(box_maps), -1, (4, -1))
        return RawPredictions(_flatten(class_maps), box_logits, points, strides)

    def decode(self, raw: RawPredictions) -> tuple[Tensor, Tensor]:
        """Scores [N, A, C] in 0 .. 1 and boxes [N, A, 4] as xyxy pixels."""
        return raw.class_logits.sigmoid(), decode_boxes(raw.box_logits, raw.points, raw.strides)


def _predictors(widths: Sequence[int], outputs: int, kernel: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Conv2d(width, outputs, kernel, padding=kernel // 2) for width in widths)


def _initialise(convs: nn.ModuleList, bias: float) -> None:
    for conv in convs:
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        nn.init.normal_(conv.weight, std=0.01)
        nn.init.constant_(conv.bias, bias)


def _flatten(maps: Sequence[Tensor]) -> Tensor:
    """Levels [N, K, H, W] -> [N, A, K]; free of copies for channels_last maps up to the concatenation."""
    return torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in maps], dim=1)
