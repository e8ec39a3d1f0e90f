"""The objective: what a training step minimises."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor, nn

from damoserve_compress.network import RawPredictions
from damoserve_compress.training.losses import LossConfig, Losses, Target, detection_loss


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """A forward pass of the network that is trained."""

    images: Tensor
    """[N, 3, H, W]"""
    features: Sequence[Tensor]
    """The three neck outputs, in the precision of the forward pass."""
    predictions: RawPredictions
    """float32"""
    targets: Sequence[Target]
    progress: float
    """Share of the training done, 0..1."""
    autocast: Callable[[], AbstractContextManager[object]]
    """Opens the precision of the forward pass, for whatever else is computed from the images."""


class DetectionObjective(nn.Module):
    """The detection losses alone. An objective may have parameters, trained beside the network's."""

    def __init__(self, loss: LossConfig) -> None:
        super().__init__()
        self._loss = loss

    def forward(self, step: ForwardPass) -> Losses:
        return detection_loss(step.predictions, step.targets, self._loss)
