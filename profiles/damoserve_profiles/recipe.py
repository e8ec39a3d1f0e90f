"""Recipes, which say as data how a profile is made.

A recipe is a YAML file; its stem is the name of the profile. Steps that are absent are not done:

    prune:      # cut channels, then fine-tune
      ratio: 0.2
    quantise:   # 8-bit QDQ
      calibration_images: 205
"""

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from damoserve_profiles.faults import describe_faults
from damoserve_profiles.files import bundled
from damoserve_profiles.runtimes import CpuEngineName, Precision

RECIPES = bundled("recipes")

Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


class RecipeError(ValueError):
    """Raised when a recipe is missing or not valid; the message names the file and the field."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FineTune(_Strict):
    """The training after a cut."""

    epochs: Annotated[int, Field(gt=0)]
    learning_rate: Annotated[float, Field(gt=0)]
    rendered: Annotated[int, Field(ge=0)] = 0
    """Number of rendered images that are mixed into each epoch."""
    distil: Annotated[float, Field(ge=0)] = 0.0
    """First weight of channel-wise distillation from the network before all cuts; it falls to a tenth. 0 is none."""


Importance = Literal["l1", "bn_scale", "taylor"]


class Prune(_Strict):
    """Structured pruning over dependency groups: one of `ratio`, `macs`, `parameters` and `latency` says how much.

    If it was done before, `network` alone names the result.
    """

    ratio: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the channels to cut in every group; the number that is cut depends on `round_to`."""
    macs: Share | None = None
    """Share of the multiply-accumulate operations that may be left."""
    parameters: Share | None = None
    """Share of the parameters that may be left."""
    latency: Share | None = None
    """Share of the time of one inference that may be left, measured on this machine against the whole network."""
    importance: Importance = "l1"
    """Ranking of the channels within their group: by the L1 norm of their weights, by the factors of their batch norms,
    or by the first-order change of the training loss without them."""
    allocation: Literal["uniform", "sensitivity"] = "uniform"
    """Distribution of the cut: the same share of every group, or of every stage as much as costs the same loss."""
    round_to: Annotated[int, Field(gt=0)] = 8
    """Divisor of the number of channels that a group keeps: the multiple of it that is nearest to the wanted count."""
    steps: Annotated[int, Field(gt=0)] = 1
    """Number of cuts, evenly on a logarithmic scale, each followed by training."""
    step_epochs: Annotated[int, Field(gt=0)] = 10
    """Epochs of training after each cut but the last."""
    fine_tune: FineTune | None = None
    """Training after the last cut."""
    network: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")] | None = None
    """Name of a checkpoint beside that of the whole network: cut and trained before, perhaps on another machine."""

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        amounts = [amount for amount in (self.ratio, self.macs, self.parameters, self.latency) if amount is not None]
        if self.network is not None:
            if amounts or self.fine_tune:
                raise ValueError("a network that was cut before is neither cut nor trained again")
            return self
        if len(amounts) != 1:
            raise ValueError("one of ratio, macs, parameters and latency says how much is cut")
        if self.fine_tune is None:
            raise ValueError("fine_tune says how the cut network is trained: without training it finds nothing")
        if self.ratio is not None and (self.steps > 1 or self.allocation != "uniform"):
            raise ValueError("a ratio is cut uniformly in one step; give macs, parameters or latency instead")
        return self


Ranges = Literal["minmax", "percentile", "mse", "entropy", "auto"]
Operators = Literal["all", "conv", "conv+concat", "measure"]

# Why the two settings that other tools start with are not offered.
_SIGNED = "only uint8 is offered: on x86 no 8-bit kernel takes signed activations, and the graph is slower than float"
_DYNAMIC = "only static is offered: ranges found at each request cost more than 8 bits save, and fuse with nothing"


class Quantise(_Strict):
    """Static 8-bit quantisation: QDQ, activations QUInt8, weights QInt8 per channel."""

    calibration_images: Annotated[int, Field(gt=0)]
    """Most training images, in the data set's order, from which the ranges of the activations are taken."""
    reduce_range: bool | None = True
    """True for weights in 7 bits. Processors without VNNI add pairs of 8-bit products in 16 bits, which overflows with
    8. None is as the building machine needs it, which is wrong on a server without VNNI if that machine has it."""
    method: str = "static"
    activations: str = "uint8"
    ranges: Ranges = "minmax"
    """Way to take the range of an activation from its values: `minmax`, all of them; `percentile`, all but the
    outermost; `mse`, the least expected squared error; `entropy`, the least loss of information (KL divergence);
    `auto`, for every tensor the one of these with the least expected squared error. Outputs of the head keep all
    values."""
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    """Share of the values, in per cent, that `percentile` keeps; half of the others is cut at either end."""
    equalise: bool = False
    """True for cross-layer equalisation, before ranges are taken, of convolutions with only a ReLU between them."""
    bias_correction: bool = False
    """True to put the mean shift that quantising a convolution causes in each channel into its bias."""
    operators: Operators = "all"
    """Operators in 8 bits up to the head: everything; convolutions; with them concatenations; or, with `measure`,
    whichever of these is the fastest on this machine, which another build may find otherwise."""
    engine: CpuEngineName = "onnxruntime"
    """Runtime that the graph is for. The operators are timed in it, and pixels enter as it likes: ONNX Runtime reads
    them as they are; OpenVINO reads floats that the graph quantises, or it would compute the first convolution in
    float."""
    sensitivity: bool = False
    """True to report the harm of every convolution by itself. A budget has this measured too where it needs it."""
    sensitivity_images: Annotated[int, Field(gt=0)] = 8
    """Number of calibration images on which the harm is measured."""
    sensitivity_ap: Annotated[int, Field(ge=0)] = 0
    """Number of the most harmful convolutions of which the average precision is measured too."""
    budget: Fraction | None = None
    """Average precision (0..1) that may be lost on the selection images: while it is more, convolutions go back to
    float, the most harmful first. For None, none do."""
    max_float_groups: Annotated[int, Field(ge=0)] = 8
    """Most convolutions that go back to float."""

    @field_validator("method")
    @classmethod
    def _static(cls, value: str) -> str:
        if value != "static":
            raise ValueError(_DYNAMIC)
        return value

    @field_validator("activations")
    @classmethod
    def _unsigned(cls, value: str) -> str:
        if value != "uint8":
            raise ValueError(_SIGNED)
        return value


Target = Literal["cpu", "gpu", "npu"]
Tail = Literal["best", "all", "host"]


class Export(_Strict):
    """The form of the ONNX graph. What is said of an NPU is for the target `npu` only."""

    candidates: Annotated[int, Field(gt=0)] = 500
    """Most anchors, the best ones, that are decoded and returned."""
    opset: Annotated[int, Field(ge=17)] = 20
    stem: Literal["convolution", "space_to_depth"] = "convolution"
    """Form in which the stem reads the image: one stride-2 convolution, which suits float kernels, or 2x2 squares of
    pixels laid side by side before a 3x3 convolution, which suits 8-bit kernels. Both compute the same."""
    tail: Tail | None = None
    """Operators behind the head's convolutions: `best`, the choice of the best candidates and their boxes; `all`,
    scores and boxes of all anchors, by plain operators, for an NPU that computes in float too; `host`, none, as the
    host decodes the raw maps (`damoserve_profiles.maps`). None is `host` for an NPU, else `best`."""
    silu: Literal["sigmoid", "hardswish", "relu"] = "sigmoid"
    """Function that an NPU computes for SiLU: x * sigmoid(x), which is exact, or a cheaper one, which is not: the build
    reports what that loses."""
    upsample: Literal["resize", "transposed_convolution"] = "resize"
    """Operator by which an NPU doubles maps: nearest Resize, or a depthwise transposed convolution; both are exact."""


# What of `Quantise` says something about 8 bits without zero points.
_SYMMETRIC = frozenset({"calibration_images", "ranges", "percentile", "equalise"})


class Recipe(_Strict):
    """All steps from a trained checkpoint to a profile, in the order in which they are done."""

    name: str
    target: Target = "cpu"
    """Hardware that the graph is written for: a processor, by ONNX Runtime or OpenVINO; a GPU, by TensorRT, in float16
    wherever it is not in 8 bits; or an NPU, by its compiler."""
    prune: Prune | None = None
    export: Export = Export()
    quantise: Quantise | None = None
    precision: Precision | None = None
    """Precision of float layers; None for float32. With another the profile runs in OpenVINO only."""
    max_ap_drop: Fraction = 1.0
    """Most average precision (0..1) that may be lost against the source network; the build fails when it is more."""

    @model_validator(mode="after")
    def _suits_target(self) -> Self:
        export = self.export
        if self.target == "npu":
            if export.tail == "best" or export.stem != "convolution":
                raise ValueError("an npu takes neither the tail best, which sorts, nor space_to_depth, which splits")
        elif export.tail in ("all", "host") or export.silu != "sigmoid" or export.upsample != "resize":
            raise ValueError(f"tails but best, silu and upsample are for the target npu, not {self.target}")
        if self.target == "cpu":
            return self
        if self.precision is not None:
            raise ValueError(f"precision is for the target cpu: {self.target} has its own")
        if self.target == "gpu" and self.quantise and export.opset < 19:
            raise ValueError("a gpu in 8 bits takes opset 19 or later: earlier ones have no float16 scales")
        # Values, not which were given: a manifest gives all of them.
        changed = self.quantise.model_dump(exclude_defaults=True).keys() if self.quantise else set()
        foreign = changed - _SYMMETRIC
        if foreign:
            raise ValueError(f"quantise.{min(foreign)} is for the target cpu: {self.target} takes {sorted(_SYMMETRIC)}")
        return self


def read_recipe(path: Path) -> Recipe:
    """Reads a recipe file. Raises RecipeError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return Recipe.model_validate(content | {"name": path.stem})
    except FileNotFoundError as error:
        raise RecipeError(f"no recipe at {path}") from error
    except ValidationError as error:
        raise RecipeError(f"{path}: {describe_faults(error)}") from error
    except (yaml.YAMLError, TypeError, OSError) as error:
        raise RecipeError(f"{path}: {error}") from error
