"""Reparameterisation, from the training form to the deploy form: the same function with fewer, biased convolutions.

All folding happens in float64 and is rounded once, so that the outputs move by rounding only.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from damoserve_compress.network.backbone import Focus
from damoserve_compress.network.blocks import ConvBN, ConvKXBNAct, Foldable, RepConv
from damoserve_compress.network.head import Scale
from damoserve_compress.network.network import Network


def fuse(network: Network) -> Network:
    """A copy in evaluation mode without any BatchNorm, every RepConv one convolution; the input is left as it is."""
    fused = reparameterise(network)
    for module in list(fused.modules()):
        if isinstance(module, Foldable):
            for conv_name, norm_name in module.folds:
                _fold(module, conv_name, norm_name)
    return fused


def reparameterise(network: Network) -> Network:
    """A copy in evaluation mode whose RepConvs are one convolution each; other BatchNorms stay.

    This is the deploy form of published checkpoints and of published parameter counts.
    """
    copied = copy.deepcopy(network).eval()
    for module in list(copied.modules()):
        if isinstance(module, RepConv):
            _merge_branches(module)
    return copied


def _merge_branches(module: RepConv) -> None:
    dense, pointwise = module.rbr_dense, module.rbr_1x1
    if dense is None or pointwise is None:
        return
    weight, bias = _folded_branch(dense)
    point_weight, point_bias = _folded_branch(pointwise)
    margin = dense.conv.kernel_size[0] // 2
    weight = weight + functional.pad(point_weight, [margin] * 4)
    module.deploy(_biased(dense.conv, weight, bias + point_bias))


def _folded_branch(branch: ConvBN) -> tuple[Tensor, Tensor]:
    assert isinstance(branch.bn, nn.BatchNorm2d)
    return _folded(branch.conv, branch.bn)


def _fold(module: Foldable, conv_name: str, norm_name: str) -> None:
    conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
    if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):  # not so where the network was fused before
        module.set_submodule(conv_name, _biased(conv, *_folded(conv, norm)))
        module.set_submodule(norm_name, nn.Identity())


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of the convolution that equals `conv` followed by `norm` in evaluation mode."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.running_mean.double()
    if conv.bias is not None:
        shift = shift - conv.bias.detach().double()
    weight = conv.weight.detach().double() * scale.view(-1, 1, 1, 1)
    return weight, norm.bias.detach().double() - shift * scale


def _biased(like: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution with these parameters, everything else as in `like`; its widths come from the weight."""
    conv = copy.deepcopy(like)
    dtype = like.weight.dtype
    conv.weight = nn.Parameter(weight.to(dtype))
    conv.bias = nn.Parameter(bias.to(dtype))
    return conv


def stem_over_pixels(network: Network) -> Network:
    """A copy of a fused network whose stem reads the image with one stride-2 convolution instead of slicing it first.

    Exactly equal: a 3x3 window over 2x2 squares is a 6x6 window over pixels.
    """
    copied = copy.deepcopy(network)
    if isinstance(copied.backbone.parts[0], Focus):
        window, bias, act = _stem_window(copied)
        conv = nn.Conv2d(window.shape[1], len(window), 6, stride=2, padding=2)
        copied.backbone.parts[0] = _stem(conv, window, bias, act)
    return copied


def stem_over_squares(network: Network) -> Network:
    """A copy of a fused network that takes 2x2 squares of pixels, [N, 12, H/2, W/2], channels by (row, column, colour).

    For images in row-major memory that is the cheapest order to bring them into.
    """
    copied = copy.deepcopy(network)
    window, bias, act = _stem_window(copied)
    squares = torch.unflatten(torch.unflatten(window, 3, (3, 2)), 2, (3, 2))  # [out, colour, 3, row, 3, column]
    weight = squares.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
    conv = nn.Conv2d(weight.shape[1], len(weight), 3, padding=1)
    copied.backbone.parts[0] = _stem(conv, weight, bias, act)
    return copied


def fold_scales(network: Network) -> Network:
    """A copy of a fused network whose box convolutions include the learned factors of their levels. Exactly equal."""
    copied = copy.deepcopy(network)
    for level, scale in enumerate(copied.head.scales):
        if isinstance(scale, Scale):
            conv = copied.head.gfl_reg[level]
            assert isinstance(conv, nn.Conv2d)
            for parameter in conv.parameters():
                parameter.data *= scale.scale.detach()
            copied.head.scales[level] = nn.Identity()
    return copied


def _stem_window(network: Network) -> tuple[Tensor, Tensor | None, nn.Module]:
    """Weight [out, colour, 6, 6], bias and activation of a fused stem, as a convolution with stride and padding 2."""
    stem = network.backbone.parts[0]
    if isinstance(stem, Focus):
        conv = stem.conv.conv
        # Focus lays the corners side by side by (column, row, colour).
        corners = torch.unflatten(conv.weight.detach(), 1, (2, 2, -1)).permute(0, 3, 4, 2, 5, 1)
        return corners.flatten(4, 5).flatten(2, 3), conv.bias, stem.conv.act
    assert isinstance(stem, ConvKXBNAct)
    conv = stem.conv.conv1
    return functional.pad(conv.weight.detach(), (1, 2, 1, 2)), conv.bias, stem.act


def _stem(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, act: nn.Module) -> nn.Module:
    conv.weight = nn.Parameter(weight)
    conv.bias = bias
    return nn.Sequential(conv, act)
