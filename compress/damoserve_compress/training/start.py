"""The networks that a training run starts with: the one to train, and its teacher."""

from pathlib import Path

import torch

from damoserve_compress.network import Network, build_network
from damoserve_compress.network.checkpoint import Description, load_checkpoint
from damoserve_compress.network.structures import find_structure
from damoserve_compress.training.checkpoint import UnusableWeights
from damoserve_compress.training.config import TrainConfig
from damoserve_profiles.imaging import ResizeMode


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
    _check_resize(init, what, config.resize)
    if what.labels != labels:
        network.head.replace_classes(len(labels))
        network.num_classes = len(labels)
    return network


def load_teacher(path: Path, labels: tuple[str, ...], resize: ResizeMode) -> Network:
    """The network of a checkpoint. Raises CheckpointError, or UnusableWeights where it was trained otherwise.

    A teacher of other data would teach where their objects are, one of another way to resize, other shapes.
    """
    network, what = load_checkpoint(path)
    if what.labels != labels:
        raise UnusableWeights(f"{path} was trained for {what.labels}, not for {labels}: a teacher needs the same data")
    _check_resize(path, what, resize)
    return network


def _check_resize(path: Path, what: Description, wanted: ResizeMode) -> None:
    if what.resize != wanted:
        raise UnusableWeights(f"{path} was trained on images resized by {what.resize}: --set resize={what.resize}")
