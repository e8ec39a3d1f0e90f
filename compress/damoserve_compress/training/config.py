"""How a network is trained."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from damoserve_compress.training.augment import AugmentConfig
from damoserve_compress.training.losses import LossConfig

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class TrainConfig:
    """The defaults train variant P on about two hundred images."""

    model: str = "model"
    """Name that the model is served under; checkpoints carry it."""
    variant: str = "P"
    size: int = 416
    """Side of the square network input in pixels, a multiple of 32."""
    epochs: int = 120
    batch_size: int = 16
    learning_rate: float = 2e-3
    """Of AdamW, at its highest."""
    weight_decay: float = 0.05
    """None on batch norm, biases and scales."""
    warmup_epochs: float = 3.0
    final_factor: float = 0.05
    """Share of the learning rate at which the cosine ends."""
    ema_decay: float = 0.998
    ema_tau: float = 200.0
    grad_clip: float = 10.0
    """Largest norm of the whole gradient."""
    seed: int = 0
    rendered: int = 0
    """Rendered images mixed into each epoch."""
    rendered_reuse: int = 4
    """Epochs for which the same rendered images serve: rendering one costs some thirty augmentations."""
    eval_every: int = 5
    """Epochs between evaluations; the last epoch is always evaluated."""
    precision: Precision = "float32"
    """Of the network's forward and backward pass; weights, losses and optimiser are float32 always."""
    threads: int = 0
    """Torch's threads; 0 leaves its default, all cores."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        if self.size % 32 or self.size <= 0:
            raise ValueError(f"the size must be a positive multiple of 32, not {self.size}")
        if min(self.epochs, self.batch_size, self.eval_every, self.rendered_reuse) < 1:
            raise ValueError("epochs, batch_size, eval_every and rendered_reuse must be at least 1")

    def curve(self) -> dict[str, Any]:
        """All that the result depends on, as plain values: equal for two runs that must give the same curve."""
        values = asdict(self)
        del values["threads"], values["eval_every"]
        values["augment"]["scale"] = list(self.augment.scale)
        return values


def learning_rate_factor(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Share of the learning rate in `step` (from 0): a quadratic warm-up, then a cosine down to `final_factor`."""
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return float(((step + 1) / (warmup + 1)) ** 2)
    remaining = max(config.epochs * steps_per_epoch - warmup, 1)
    cosine = (1 + math.cos(math.pi * min((step - warmup) / remaining, 1))) / 2
    return config.final_factor + (1 - config.final_factor) * cosine
