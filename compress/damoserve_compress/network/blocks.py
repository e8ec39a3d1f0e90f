"""The units every part of the network is made of.

Attribute names (`conv1.bn1`, `rbr_dense`, ...) are those of published DAMO-YOLO checkpoints, so that such
checkpoints load by key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

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


def same_conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias whose output keeps the input's size at stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


class Foldable(nn.Module):
    """A module that names its own (convolution, BatchNorm) attribute pairs, for `reparameterise` to fold."""

    FOLDS: ClassVar[tuple[tuple[str, str], ...]]


class ConvBN(Foldable):
    """Convolution and BatchNorm, the branch of a RepConv."""

    FOLDS = (("conv", "bn"),)

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

    FOLDS = (("conv1", "bn1"),)

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = same_conv(in_channels, out_channels, kernel, stride)
        self.bn1: nn.Module = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn1(self.conv1(x))
        return y


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
