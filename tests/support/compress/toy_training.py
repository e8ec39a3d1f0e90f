"""A network and a data set small enough to be trained within a test."""

import numpy as np
import torch

from damoserve_compress.datasets import Sample
from damoserve_compress.network import Network, build_network
from damoserve_compress.network.structures import NeckStructure, StageStructure, Structure
from damoserve_compress.training.config import TrainConfig

TINY = Structure(
    name="tiny",
    stem_channels=8,
    stages=(
        StageStructure(8, 8, bottleneck=8, depth=1),
        StageStructure(8, 16, bottleneck=8, depth=1),
        StageStructure(16, 16, bottleneck=8, depth=1),
        StageStructure(16, 16, bottleneck=8, depth=1),
    ),
    neck=NeckStructure(out_channels=(16, 16, 16), blocks=1),
)
CONFIG = TrainConfig(size=64, epochs=3, batch_size=4, eval_every=2, warmup_epochs=0.5, ema_tau=5, seed=3)


class Squares:
    """Bright squares on dark noise; item i is always the same picture."""

    labels: tuple[str, ...] = ("light", "red")

    def __init__(self, count: int, first: int = 0) -> None:
        self._count = count
        self._first = first

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._count:
            raise IndexError(index)
        rng = np.random.default_rng(self._first + index)
        image = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8)
        boxes, labels = [], []
        for left in (2, 34):
            side, top = int(rng.integers(14, 26)), int(rng.integers(2, 20))
            label = int(rng.integers(2))
            image[top : top + side, left : left + side] = [(240, 240, 240), (230, 40, 40)][label]
            boxes.append([left, top, left + side, top + side])
            labels.append(label)
        return Sample(image, np.array(boxes, np.float32), np.array(labels, np.int64), index)


def tiny_network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return build_network(TINY, 2)
