"""The units every part of the network is made of.

Attribute names (`conv1.bn1`, `rbr_dense`, ...) are those of published DAMO-YOLO checkpoints, so that such
checkpoints load by key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from damoserve_compress.network.structures import StageStructure

# In place is safe for ReLU after a BatchNorm or an addition: neither needs its own output to go backward.
ACTIVATIONS: Final[Mapping[str, Callable[[], nn.Module]]] = MappingProxyType(
    {"identity": nn.Identity, "relu": partial(nn.ReLU, inplace=True), "silu": nn.SiLU}
)


def activation(name: str) -> nn.Module:
    """A new module for a name in ACTIVATIONS."""
    return ACTIVATIONS[name]()


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm with DAMO-YOLO's constants; PyTorch's default eps of 1e-5 would shift every published checkpoint."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)


class SubsampledConv(nn.Conv2d):
    """A strided 1x1 convolution that reads only the pixels it needs, as one without stride.

    The same in value. oneDNN writes past its workspace in the gradient of a strided 1x1 convolution over fewer channels
    than its kernels take at once, 16 with AVX-512 (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def forward(self, x: Tensor) -> Tensor:
        step_y, step_x = self.stride
        return functional.conv2d(x[..., ::step_y, ::step_x], self.weight, self.bias)


def same_conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias whose output keeps the input's size at stride 1."""
    kind = SubsampledConv if kernel == 1 and stride > 1 else nn.Conv2d
    return kind(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


def depthwise_conv(channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution as `same_conv` with one filter for each channel."""
    return nn.Conv2d(channels, channels, kernel, stride, padding=kernel // 2, groups=channels, bias=False)


class Foldable(nn.Module):
    """A module that names its own (convolution, BatchNorm) pairs of submodules, for `reparameterise` to fold."""

    folds: tuple[tuple[str, str], ...]


class ConvBN(Foldable):
    """Convolution and BatchNorm, the branch of a RepConv."""

    folds = (("conv", "bn"),)

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = same_conv(in_channels, out_channels, kernel, stride)
        self.bn: nn.Module = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        return y


class ConvBNAct(ConvBN):
    """Convolution, BatchNorm, activation: [N, in, H, W] -> [N, out, H / stride, W / stride]."""

    def __init__(self, channels: tuple[int, int], kernel: int, stride: int = 1, act: str = "relu") -> None:
        super().__init__(*channels, kernel, stride)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(super().forward(x))
        return y


class ConvKXBN(Foldable):
    """Convolution and BatchNorm under the key names of the searched backbones."""

    folds = (("conv1", "bn1"),)

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = same_conv(in_channels, out_channels, kernel, stride)
        self.bn1: nn.Module = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn1(self.conv1(x))
        return y


class ConvKXBNAct(nn.Module):
    """ConvKXBN and activation: [N, in, H, W] -> [N, out, H / stride, W / stride]."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, act: str = "relu") -> None:
        super().__init__()
        self.conv = ConvKXBN(in_channels, out_channels, kernel, stride)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.conv(x))
        return y


class DepthwiseConv(Foldable):
    """Depthwise, then pointwise, each with BatchNorm and activation: [N, C, H, W] -> [N, C, H / stride, W / stride]."""

    folds = (("depthwise", "dwnorm"), ("pointwise", "pwnorm"))

    def __init__(self, channels: int, kernel: int, stride: int, act: str) -> None:
        super().__init__()
        self.depthwise = depthwise_conv(channels, kernel, stride)
        self.pointwise = same_conv(channels, channels, 1)
        self.dwnorm: nn.Module = batch_norm(channels)
        self.pwnorm: nn.Module = batch_norm(channels)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.dwnorm(self.depthwise(x)))
        out: Tensor = self.act(self.pwnorm(self.pointwise(y)))
        return out


class InvertedResidual(Foldable):
    """Expansion, depthwise convolution, projection (arXiv 1801.04381), with a skip where nothing changes shape.

    `placeholder` leaves a place in the sequence, empty in every published variant: keys of backbones count it, those
    of necks do not.
    """

    def __init__(self, block: StageStructure, kernel: int, act: str, placeholder: bool) -> None:
        super().__init__()
        wide = block.bottleneck
        self.conv = nn.Sequential(
            *(same_conv(block.in_channels, wide, 1), batch_norm(wide), activation(act)),
            *(depthwise_conv(wide, kernel, block.stride), batch_norm(wide)),
            *([nn.Identity()] if placeholder else []),
            *(activation(act), same_conv(wide, block.out_channels, 1), batch_norm(block.out_channels)),
        )
        last = len(self.conv) - 1
        self.folds = (("conv.0", "conv.1"), ("conv.3", "conv.4"), (f"conv.{last - 1}", f"conv.{last}"))
        self.skips = block.stride == 1 and block.in_channels == block.out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.skips else y


class RepConv(nn.Module):
    """A 3x3 and a 1x1 branch in training, one biased 3x3 convolution once re-parameterised.

    DAMO-YOLO's form of RepVGG (arXiv 2101.03697): there is no identity branch.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, act: str = "relu") -> None:
        super().__init__()
        self.nonlinearity = activation(act)
        self.rbr_dense: ConvBN | None = ConvBN(in_channels, out_channels, 3, stride)
        self.rbr_1x1: ConvBN | None = ConvBN(in_channels, out_channels, 1, stride)
        self.rbr_reparam: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.rbr_dense is not None and self.rbr_1x1 is not None:
            y = self.rbr_dense(x) + self.rbr_1x1(x)
        else:
            assert self.rbr_reparam is not None
            y = self.rbr_reparam(x)
        out: Tensor = self.nonlinearity(y)
        return out

    def deploy(self, conv: nn.Conv2d) -> None:
        """Replace both branches by the convolution they amount to."""
        self.rbr_reparam = conv
        self.rbr_dense = None
        self.rbr_1x1 = None


class SPPBottleneck(nn.Module):
    """Spatial pyramid pooling over windows 5, 9 and 13. Uses SiLU in every variant, whatever the others use."""

    def __init__(self, in_channels: int, out_channels: int, act: str = "silu") -> None:
        super().__init__()
        hidden = in_channels // 2
        self.conv1 = ConvBNAct((in_channels, hidden), 1, act=act)
        self.conv2 = ConvBNAct((4 * hidden, out_channels), 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        pyramid = [self.conv1(x)]
        # A window of 5 applied twice is a window of 9, thrice 13: the same maxima at a fraction of the cost.
        for _ in range(3):
            pyramid.append(functional.max_pool2d(pyramid[-1], kernel_size=5, stride=1, padding=2))
        y: Tensor = self.conv2(torch.cat(pyramid, dim=1))
        return y
