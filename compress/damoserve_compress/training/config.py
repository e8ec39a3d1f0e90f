"""Training recipes: the settings of a training, with their defaults.

A recipe is a YAML file with the fields of `TrainConfig`; absent ones keep their defaults. The bundled ones:

    default     `TrainConfig` as it stands: a small network on a few hundred images
    cells       the bundled blood-cells model
    damo        DAMO-YOLO T, S, M and L as published: SGD, 300 epochs, mosaic, mixup, box-level augmentation
    damo-nano   DAMO-YOLO Ns, Nm and Nl as published: the same with AdamW
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from damoserve_compress.training.augment import AugmentConfig
from damoserve_compress.training.distil import DistilConfig
from damoserve_compress.training.losses import LossConfig
from damoserve_profiles.faults import describe_faults
from damoserve_profiles.imaging import ResizeMode
from damoserve_profiles.manifest import FileName, InputSpec

RECIPES: Final = Path(__file__).parent / "recipes"

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Side = Annotated[int, Field(gt=0, multiple_of=32)]
Precision = Literal["float32", "bfloat16"]


class TrainConfigError(ValueError):
    """A training recipe is missing or not valid; the message names the file and the fields."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TrainConfig:
    """The defaults train variant P on about two hundred images."""

    model: FileName = "model"
    """Name that the model is served under; checkpoints carry it."""
    variant: str = "P"
    size: Side = 416
    """Side of the square network input in pixels."""
    sizes: tuple[Side, ...] = ()
    """Multi-scale training: every batch has one of these sides, drawn at random. Empty: `size` always."""
    resize: ResizeMode = "stretch"
    """The way images are brought to that square; a checkpoint to start from must have been trained with the same."""
    epochs: Count = 120
    tail_epochs: Annotated[int, Field(ge=0)] = 0
    """Last epochs, at the lowest learning rate, each evaluated: images as they are, but for flips and colours."""
    tail_affine: bool = False
    """True to scale, turn and shear images in these epochs, too; only mosaic and mixup end."""
    batch_size: Count = 16
    optimiser: Literal["adamw", "sgd"] = "adamw"
    """`sgd` has Nesterov momentum, if any."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """The momentum of SGD."""
    learning_rate: Positive = 2e-3
    """The learning rate at its highest."""
    weight_decay: NotNegative = 0.05
    """The weight decay; batch norms, biases and scales have none."""
    warmup_epochs: NotNegative = 3.0
    final_factor: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the learning rate at which the cosine ends."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.998
    ema_tau: Positive = 200.0
    grad_clip: Positive | None = 10.0
    """Largest norm of the whole gradient; none where null."""
    seed: Annotated[int, Field(ge=0)] = 0
    rendered: Annotated[int, Field(ge=0)] = 0
    """Rendered images mixed into each epoch."""
    rendered_reuse: Count = 4
    """Epochs for which the same rendered images serve: rendering one costs some thirty augmentations."""
    precision: Precision = "float32"
    """The precision of the network's forward and backward pass; weights, losses and optimiser are float32 always."""
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    distil: DistilConfig | None = None
    """The settings for learning from a teacher."""
    eval_every: Count = 5
    """Epochs between evaluations. The first epoch is evaluated too, so that a fault shows at once, and the last."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Torch's threads; 0 leaves its default, all cores."""
    workers: Count = 1
    """Threads that prepare batches."""
    device: str = "cpu"
    """Torch's name of the device."""

    def __post_init__(self) -> None:
        if self.tail_epochs >= self.epochs:
            raise ValueError(f"tail_epochs ({self.tail_epochs}) must be fewer than epochs ({self.epochs})")

    @property
    def input(self) -> InputSpec:
        """The input of the trained network."""
        return InputSpec(width=self.size, height=self.size, resize=self.resize)

    def curve(self) -> dict[str, Any]:
        """Gives all that the result depends on, as plain values: equal for two runs that must give the same curve."""
        values: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        for name in ("threads", "workers", "eval_every", "device"):
            del values[name]
        return values

    def is_tail(self, epoch: int) -> bool:
        """Says whether an epoch, from 0, is one of the last, without mosaic and mixup."""
        return epoch >= self.epochs - self.tail_epochs

    def is_evaluated(self, epoch: int) -> bool:
        """Says whether an evaluation ends this epoch, from 0."""
        return epoch == 0 or (epoch + 1) % self.eval_every == 0 or epoch + 1 == self.epochs or self.is_tail(epoch)


_ADAPTER: Final = TypeAdapter(TrainConfig)


def read_train_config(
    recipe: str,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    given: Mapping[str, Any] = MappingProxyType({}),
    settings: Sequence[str] = (),
) -> TrainConfig:
    """A bundled recipe by its name, or the YAML file at that path.

    `defaults` stand where the recipe is silent, `given` fields replace the recipe's, and so do `settings`, each
    written as `field=value` or `field.field=value` with a YAML value. Raises TrainConfigError.
    """
    try:
        fields: dict[str, Any] = {**defaults, **_read(recipe), **given}
        for setting in settings:
            _assign(fields, setting)
        return _ADAPTER.validate_python(fields)
    except ValidationError as error:
        raise TrainConfigError(f"training recipe {recipe}: {describe_faults(error)}") from error


def _read(recipe: str) -> dict[str, Any]:
    if recipe == "default":
        return {}
    bundled = RECIPES / f"{recipe}.yaml"
    path = bundled if bundled.exists() else Path(recipe)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError as error:
        known = ", ".join(["default", *sorted(file.stem for file in RECIPES.glob("*.yaml"))])
        raise TrainConfigError(f"no training recipe {recipe}: neither a file nor one of {known}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise TrainConfigError(f"{path} cannot be read as a training recipe: {error}") from error
    if not isinstance(content, dict):
        raise TrainConfigError(f"{path} is no training recipe: it holds no fields")
    return content


def _assign(fields: dict[str, Any], setting: str) -> None:
    name, equals, value = setting.partition("=")
    if not equals:
        raise TrainConfigError(f"--set takes FIELD=VALUE, not {setting}")
    *groups, last = name.split(".")
    for group in groups:
        inner = fields.get(group)
        fields[group] = dict(inner) if isinstance(inner, dict) else {}
        fields = fields[group]
    try:
        fields[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise TrainConfigError(f"--set {setting}: {value} is no YAML value") from error


def learning_rate_factor(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Share of the learning rate in `step` (from 0): quadratic warm-up, cosine to `final_factor`, flat in the tail."""
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return float(((step + 1) / (warmup + 1)) ** 2)
    remaining = max((config.epochs - config.tail_epochs) * steps_per_epoch - warmup, 1)
    cosine = (1 + math.cos(math.pi * min((step - warmup) / remaining, 1))) / 2
    return config.final_factor + (1 - config.final_factor) * cosine
