"""Feature distillation: a student's three neck outputs learn to look like a trained teacher's.

A 1x1 convolution aligns the student's channels with the teacher's; both are then normalised over batch and positions,
channel by channel and without learnt factors, so that only the pattern counts. As in the released DAMO-YOLO trainer:

    cwd     channel-wise distillation (Shu et al., ICCV 2021, arXiv 2011.13256): every channel is a softmax
            distribution over the positions; the divergence of the student's from the teacher's, summed over the
            positions, is averaged over images and channels
    mimic   mean squared difference (FitNets, arXiv 1412.6550)

Their weight falls along a cosine from `first_weight` to `last_weight` over the whole training.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from damoserve_compress.network import Network, fuse
from damoserve_compress.training.losses import LossConfig, Losses, detection_loss
from damoserve_compress.training.objective import ForwardPass


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DistilConfig:
    method: Literal["cwd", "mimic"] = "cwd"
    first_weight: Annotated[float, Field(ge=0)] = 1.0
    last_weight: Annotated[float, Field(ge=0)] = 0.1
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """The temperature of channel-wise distillation's softmax."""
    teacher: str = ""
    """SHA-256 of the teacher's checkpoint: part of what the result depends on."""

    def weight(self, progress: float) -> float:
        """The weight of the imitation at `progress` 0..1 of the training."""
        cosine = (1 + math.cos(math.pi * progress)) / 2
        return self.last_weight + (self.first_weight - self.last_weight) * cosine


def normalise(features: Tensor) -> Tensor:
    """[N, C, H, W], each channel with mean 0 and variance 1 over N, H and W."""
    return F.batch_norm(features, None, None, training=True, eps=1e-5)


def channel_wise_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Divergence of the channels' distributions over the positions, for features [N, C, H, W]: a scalar."""
    student_log = (student.flatten(2) / temperature).log_softmax(-1)
    teacher_log = (teacher.flatten(2) / temperature).log_softmax(-1)
    divergence = F.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
    return divergence * temperature**2 / (student.shape[0] * student.shape[1])


class DistillationObjective(nn.Module):
    """The detection losses, plus what the student's neck outputs lack of the teacher's.

    The teacher is frozen and fused; only the aligning convolutions have parameters and state.
    """

    def __init__(self, student: Network, teacher: Network, config: DistilConfig, loss: LossConfig) -> None:
        super().__init__()
        self.config = config
        self._loss = loss
        fused = fuse(teacher).requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # In a tuple, torch takes it for no part of this module: neither saved nor trained.
        self._teacher: tuple[Network] = (fused,)
        widths = zip(_neck_widths(student), _neck_widths(teacher), strict=True)
        self.align = nn.ModuleList(nn.Conv2d(own, wanted, 1) for own, wanted in widths)

    @property
    def teacher(self) -> Network:
        return self._teacher[0]

    def forward(self, step: ForwardPass) -> Losses:
        detection = detection_loss(step.predictions, step.targets, self._loss)
        with torch.no_grad(), step.autocast():
            wanted = self.teacher.to(step.images.device).features(step.images)
        with step.autocast():
            aligned = [align(feature) for align, feature in zip(self.align, step.features, strict=True)]
        feature = self._imitation(aligned, wanted) * self.config.weight(step.progress)
        return detection._replace(total=detection.total + feature, feature=feature)

    def _imitation(self, aligned: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        losses = []
        for student, teacher in zip(aligned, wanted, strict=True):
            pair = normalise(student.float()), normalise(teacher.float())
            if self.config.method == "cwd":
                losses.append(channel_wise_loss(*pair, self.config.temperature))
            else:
                losses.append(F.mse_loss(*pair))
        return torch.stack(losses).sum()


def _neck_widths(network: Network) -> list[int]:
    return [conv.in_channels for conv in network.head.gfl_reg if isinstance(conv, nn.Conv2d)]
