"""Exponential moving average of a network's weights: what is evaluated and kept."""

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

_Network = TypeVar("_Network", bound=nn.Module)


class ModelEma(Generic[_Network]):
    """Averages parameters and floating-point buffers; other buffers (batch counters) are copied.

    The decay grows as decay * (1 - exp(-step / tau)), so that the random start is forgotten quickly
    (the schedule of the released DAMO-YOLO trainer). `tau` is in steps.
    """

    def __init__(self, network: _Network, decay: float = 0.998, tau: float = 200.0) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.tau = tau
        self.steps = 0

    def current_decay(self) -> float:
        return self.decay * (1 - math.exp(-self.steps / self.tau))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards `network`, which must have the entries of the one given at the start."""
        self.steps += 1
        weight = 1 - self.current_decay()
        current = network.state_dict()
        for name, average in self.network.state_dict().items():
            _approach(average, current[name].detach(), weight)


def _approach(average: Tensor, value: Tensor, weight: float) -> None:
    if average.is_floating_point():
        average.lerp_(value, weight)
    else:
        average.copy_(value)
