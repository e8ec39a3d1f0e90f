"""A network small enough to be exported within a test, and pictures for it."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from damoserve_compress.datasets.rendered import RenderedSmears
from damoserve_compress.network import Network, Structure, build_network
from damoserve_compress.network.structures import NeckStructure, StageStructure
from damoserve_profiles.imaging import Size, resize

SIZE = Size(96, 64)

TINY = Structure(
    name="tiny",
    stem_channels=8,
    stages=(
        StageStructure(8, 16, bottleneck=16, depth=1),
        StageStructure(16, 24, bottleneck=16, depth=2),
        StageStructure(24, 32, bottleneck=16, depth=1),
        StageStructure(32, 48, bottleneck=24, depth=1),
    ),
    neck=NeckStructure(out_channels=(16, 32, 48), blocks=1),
)


def randomise(network: Network) -> Network:
    """Batch statistics as training would leave them: fresh ones hide mistakes in folding."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    for conv in network.head.gfl_cls:
        torch.nn.init.normal_(conv.weight, std=0.1)
    return network.eval()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Networks this small gain nothing from a second thread, and on a busy machine wait long for it."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def size() -> Size:
    return SIZE


@pytest.fixture(scope="session")
def tiny_network() -> Network:
    torch.manual_seed(1)
    return randomise(build_network(TINY, 3))


@pytest.fixture(scope="session")
def pictures() -> NDArray[np.uint8]:
    scenes = RenderedSmears(6, seed=5)
    return np.stack([resize(scenes[index].image, SIZE) for index in range(len(scenes))])
