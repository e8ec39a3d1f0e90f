"""One small structure of each family, and weights that give every layer something to do."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from damoserve_compress.network import Network, Structure
from damoserve_compress.network.structures import NeckStructure, StageStructure

RES = Structure(
    name="tiny",
    stem_channels=8,
    stages=(
        StageStructure(8, 8, bottleneck=8, depth=1),
        StageStructure(8, 16, bottleneck=8, depth=2),
        StageStructure(16, 16, bottleneck=8, depth=1),
        StageStructure(16, 24, bottleneck=8, depth=1, stride=1),  # widens without a stride: a projected skip
        StageStructure(24, 32, bottleneck=16, depth=2),
    ),
    neck=NeckStructure(out_channels=(8, 16, 24), blocks=2, hidden_ratio=0.5),
)

CSP = Structure(
    name="tiny-csp",
    family="csp",
    activation="silu",
    bottleneck_kernel=3,
    stem_channels=8,
    stages=(
        StageStructure(8, 16, bottleneck=8, depth=1),  # no block is left: the downsampling is all there is
        StageStructure(16, 32, bottleneck=24, depth=2),
        StageStructure(32, 48, bottleneck=16, depth=2),
        StageStructure(48, 48, bottleneck=24, depth=2, stride=1),
        StageStructure(48, 64, bottleneck=32, depth=2),
    ),
    neck=NeckStructure(out_channels=(16, 32, 48), blocks=2),
)

MOBILE = Structure(
    name="tiny-mobile",
    family="mobile",
    activation="silu",
    bottleneck_kernel=5,
    stem_channels=8,
    stages=(
        StageStructure(8, 16, bottleneck=32, depth=1),
        StageStructure(16, 24, bottleneck=64, depth=2),
        StageStructure(24, 32, bottleneck=96, depth=1),
        StageStructure(32, 48, bottleneck=112, depth=1, stride=1),  # widens without a stride: no skip
        StageStructure(48, 64, bottleneck=160, depth=2),
    ),
    neck=NeckStructure(out_channels=(16, 32, 48), blocks=2, hidden_ratio=3.0),
    head_kernel=1,
    reg_max=7,
)

FAMILIES = (RES, CSP, MOBILE)


def golden_value(key: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor by which the reference implementation was filled for the golden figures."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    value: NDArray[np.generic] | float
    if key.endswith("integral.project"):
        value = np.arange(shape[0])
    elif key.endswith(".scale"):
        value = rng.uniform(0.8, 1.2)
    elif key.endswith("running_var"):
        value = rng.uniform(0.5, 1.5, shape)
    elif key.endswith(("running_mean", ".bias")):
        value = rng.normal(0, 0.1, shape)
    elif len(shape) == 1:
        value = rng.uniform(0.5, 1.0, shape)
    else:
        value = rng.normal(0, 1, shape) * np.sqrt(1 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def fill(network: Network) -> Network:
    """Golden weights: unlike fresh ones they give every BatchNorm something to do."""
    state = {key: golden_value(key, tuple(value.shape)) for key, value in network.state_dict().items()}
    network.load_state_dict(state)
    return network.eval()


def images(count: int, height: int = 64, width: int = 96, seed: int = 7) -> Tensor:
    """Noise `[count, 3, height, width]`, the golden figures' input for one image of 256 x 320."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, height, width))
    return torch.from_numpy(pixels.astype(np.float32))


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
