"""A network small enough to be exported within a test, and pictures for it."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from damoserve_compress.datasets.rendered import RenderedSmears
from damoserve_compress.network import Network, build_network
from damoserve_profiles.imaging import Size, resize
from tests.support.compress.families import RES, fill

SIZE = Size(96, 64)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Networks this small gain nothing from a second thread, and on a busy machine wait long for it."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def size() -> Size:
    return SIZE


@pytest.fixture(scope="session")
def tiny_network() -> Network:
    return fill(build_network(RES, 3))


@pytest.fixture(scope="session")
def pictures() -> NDArray[np.uint8]:
    scenes = RenderedSmears(6, seed=5)
    return np.stack([resize(scenes[index].image, SIZE) for index in range(len(scenes))])
