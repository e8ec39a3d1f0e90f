"""Recipes: how a profile is made, as data.

A recipe is a YAML file; its stem is the name of the profile. Steps that are absent are not done:

    prune:      # cut channels, then fine-tune
      ratio: 0.2
    quantise:   # 8-bit QDQ
      calibration_images: 205
"""

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from damoserve_profiles.faults import describe_faults
from damoserve_profiles.files import bundled

RECIPES = bundled("recipes")

Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


class RecipeError(ValueError):
    """The recipe is missing or not valid; the message names the file and the field."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FineTune(_Strict):
    """Training after a cut."""

    epochs: Annotated[int, Field(gt=0)]
    learning_rate: Annotated[float, Field(gt=0)]
    rendered: Annotated[int, Field(ge=0)] = 0
    """Rendered images mixed into each epoch."""
    distil: Annotated[float, Field(ge=0)] = 0.0
    """First weight of channel-wise distillation from the network before all cuts; it falls to a tenth. 0: none."""


Importance = Literal["l1", "bn_scale", "taylor"]


class Prune(_Strict):
    """Structured pruning over dependency groups. One of `ratio`, `macs`, `parameters` and `latency` says how much."""

    ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Wanted share of the channels to cut in every group; what is cut depends on `round_to`."""
    macs: Share | None = None
    """Share of the multiply-accumulate operations that may be left."""
    parameters: Share | None = None
    """Share of the parameters that may be left."""
    latency: Share | None = None
    """Share of the time of one inference that may be left, measured on this machine against the whole network."""
    importance: Importance = "l1"
    """How channels are ranked within their group: by the L1 norm of their weights, by the factors of their batch norms,
    or by the first-order change of the training loss without them."""
    allocation: Literal["uniform", "sensitivity"] = "uniform"
    """Which share goes where: the same of every group, or of every stage as much as costs the same loss."""
    round_to: Annotated[int, Field(gt=0)] = 8
    """Each group keeps the multiple of this that is nearest to its wanted count."""
    steps: Annotated[int, Field(gt=0)] = 1
    """Cuts one after the other, evenly on a logarithmic scale, each followed by training."""
    step_epochs: Annotated[int, Field(gt=0)] = 10
    """Epochs of training after each cut but the last."""
    fine_tune: FineTune
    """Training after the last cut."""

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if sum(amount is not None for amount in (self.ratio, self.macs, self.parameters, self.latency)) != 1:
            raise ValueError("one of ratio, macs, parameters and latency says how much is cut")
        if self.ratio is not None and (self.steps > 1 or self.allocation != "uniform"):
            raise ValueError("a ratio is cut uniformly in one step; give macs, parameters or latency instead")
        return self


class Quantise(_Strict):
    """Static 8-bit quantisation: QDQ, activations QUInt8, weights QInt8 per channel."""

    calibration_images: Annotated[int, Field(gt=0)]
    """From how many training images, at most, the ranges of the activations are taken; in the data set's order."""
    reduce_range: bool = True
    """Weights in 7 bits. Processors without VNNI add pairs of 8-bit products in 16 bits, which overflows with 8."""


class Export(_Strict):
    """The ONNX graph."""

    candidates: Annotated[int, Field(gt=0)] = 500
    """How many of the best anchors, at most, are decoded and returned."""
    opset: Annotated[int, Field(ge=17)] = 20
    stem: Literal["convolution", "space_to_depth"] = "convolution"
    """How the stem reads the image: one stride-2 convolution, which suits float kernels, or 2x2 squares of pixels laid
    side by side before a 3x3 convolution, which suits 8-bit kernels. Both compute the same."""


class Recipe(_Strict):
    """All steps from a trained checkpoint to a profile, in the order in which they are done."""

    name: str
    prune: Prune | None = None
    export: Export = Export()
    quantise: Quantise | None = None
    max_ap_drop: Fraction = 1.0
    """The build fails when the average precision (0..1) falls by more than this below the source network's."""


def read_recipe(path: Path) -> Recipe:
    """Reads a recipe file. Raises RecipeError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return Recipe.model_validate(content | {"name": path.stem})
    except FileNotFoundError as error:
        raise RecipeError(f"no recipe at {path}") from error
    except ValidationError as error:
        raise RecipeError(f"{path}: {describe_faults(error)}") from error
    except (yaml.YAMLError, TypeError) as error:
        raise RecipeError(f"{path}: {error}") from error
