"""The optimiser, and which parameters decay."""

from itertools import chain

import torch
from torch import nn

from damoserve_compress.training.config import TrainConfig


def parameter_groups(modules: list[nn.Module], weight_decay: float) -> list[dict[str, object]]:
    """Weights of convolutions decay; batch norm, biases and scales, all of one dimension at most, do not."""
    parameters = list(chain.from_iterable(module.parameters() for module in modules))
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def build_optimiser(modules: list[nn.Module], config: TrainConfig) -> torch.optim.Optimizer:
    """Over all parameters of `modules` that are trained."""
    groups = parameter_groups(modules, config.weight_decay)
    if config.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    momentum = config.momentum
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=momentum, nesterov=momentum > 0, fused=True)
