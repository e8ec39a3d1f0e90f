"""The network that a training run starts with."""

from pathlib import Path

import torch

from damoserve_compress.network import Network, build_network
from damoserve_compress.network.checkpoint import load_checkpoint
from damoserve_compress.network.structures import find_structure
from damoserve_compress.training.checkpoint import UnusableWeights
from damoserve_compress.training.config import TrainConfig


def new_network(config: TrainConfig, labels: tuple[str, ...], init: Path | None = None) -> Network:
    """A network to train, its random weights given by the seed.

    `init` is a checkpoint to start from: the network is its own, pruned or not, with a new class head where the labels
    differ. Raises CheckpointError, or UnusableWeights where it is of another variant or way to resize.
    """
    torch.manual_seed(config.seed)
    if init is None:
        return build_network(config.variant, len(labels))
    network, what = load_checkpoint(init)
    if what.variant != find_structure(config.variant).name:
        raise UnusableWeights(f"{init} is of variant {what.variant}, not {config.variant}")
    if what.resize != config.resize:
        raise UnusableWeights(f"{init} was trained on images resized by {what.resize}: --set resize={what.resize}")
    if what.labels != labels:
        network.head.replace_classes(len(labels))
        network.num_classes = len(labels)
    return network
