"""Statistics of a network on plain training images: its loss, its gradients, and the means of its batch norms."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from damoserve_compress.datasets import Dataset
from damoserve_compress.network import Network, RawPredictions
from damoserve_compress.training.augment import AugmentConfig
from damoserve_compress.training.config import TrainConfig
from damoserve_compress.training.loader import Batch, BatchLoader
from damoserve_compress.training.losses import detection_loss

_PLAIN = AugmentConfig(horizontal_flip=0, vertical_flip=0, scale=(1, 1), brightness=0, contrast=0, saturation=0, hue=0)


def plain_batches(dataset: Dataset, config: TrainConfig, images: int) -> list[Batch]:
    """Batches of about `images` images as they are, the same at every call."""
    loader = BatchLoader(dataset, replace(config, augment=_PLAIN, sizes=(), tail_epochs=0))
    count = max(1, round(images / config.batch_size))
    return [batch for batch, _ in zip(loader.epoch(0), range(count), strict=False)]


def reestimate_norms(network: Network, batches: Sequence[Batch]) -> None:
    """Gives the batch norms the mean statistics of `batches`: those from before a cut are wrong after it."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    device = _device(network)
    training = network.training
    network.train()
    with torch.no_grad():
        for batch in batches:
            network.raw(batch.tensors(device)[0])
    network.train(training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def mean_loss(network: Network, batches: Sequence[Batch], config: TrainConfig) -> float:
    """The training loss in eval mode."""
    network.eval()
    with torch.no_grad():
        losses = [_loss(network, batch, config) for batch in batches]
    return float(torch.stack(losses).mean())


def accumulate_gradients(network: Network, batches: Sequence[Batch], config: TrainConfig) -> None:
    """Adds the gradients of the training loss of all batches to the parameters, in eval mode."""
    network.eval().requires_grad_(True).zero_grad()
    for batch in batches:
        _loss(network, batch, config).backward()  # type: ignore[no-untyped-call]


def _loss(network: Network, batch: Batch, config: TrainConfig) -> torch.Tensor:
    images, targets = batch.tensors(_device(network))
    raw = RawPredictions(*network.raw(images))
    return detection_loss(raw, targets, config.loss).total


def _device(network: Network) -> str:
    return str(next(network.parameters()).device)
