"""Exponential moving average of a network's weights: what is evaluated and kept."""

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

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
        current = network.state_dict()
        pairs = [(average, current[name].detach()) for name, average in self.network.state_dict().items()]
        averaged, values = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        # All at once: one by one, launching a thousand small kernels takes a GPU longer than a step of the optimiser.
        get_ema_multi_avg_fn(self.current_decay())(averaged, values, None)  # type: ignore[no-untyped-call]
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)
