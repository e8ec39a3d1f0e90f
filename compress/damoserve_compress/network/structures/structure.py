"""The widths and depths that a network is built from, checked to fit together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from damoserve_profiles.faults import describe_faults
from damoserve_profiles.manifest import Thresholds

STRIDES: Final = (8, 16, 32)

Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
_STRICT: Final = ConfigDict(extra="forbid")


class StructureError(ValueError):
    """A structure that cannot be built, or a name that nothing has; the message says what is wrong."""


@dataclass(frozen=True)
class StageStructure:
    """A backbone stage: `depth` blocks, the first of which has the stride (1 or 2).

    `bottleneck` is the width inside a block: narrow in the families `res` and `csp`, expanded in `mobile`.
    """

    __pydantic_config__ = _STRICT

    in_channels: Count
    out_channels: Count
    bottleneck: Count
    depth: Count
    stride: Annotated[int, Field(ge=1, le=2)] = 2

    def blocks(self) -> tuple[StageStructure, ...]:
        """The stage's blocks, each as a stage of depth 1; only the first has the stride and the input's width."""
        first = replace(self, depth=1)
        return first, *[replace(first, in_channels=self.out_channels, stride=1)] * (self.depth - 1)


@dataclass(frozen=True)
class NeckStructure:
    """RepGFPN: widths of its three outputs (strides 8, 16, 32) and the shape of its fusion blocks.

    `blocks` is what upstream configurations write as `round(3 * depth)`, a half going to the even number.
    `hidden_ratio` is the width inside a block against the block's; family `mobile` rounds to a multiple of 8.
    """

    __pydantic_config__ = _STRICT

    out_channels: tuple[Count, Count, Count]
    blocks: Count = 3
    hidden_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


@dataclass(frozen=True)
class Structure:
    """A whole detector, and how its published accuracy is measured.

    `family` is the kind of backbone: residual stages (`res`), the same in cross-stage partial form (`csp`), or
    depthwise inverted residuals, in the neck too (`mobile`).
    """

    __pydantic_config__ = _STRICT

    name: str
    stem_channels: Count
    stages: tuple[StageStructure, ...]
    neck: NeckStructure
    family: Literal["res", "csp", "mobile"] = "res"
    activation: Literal["relu", "silu"] = "relu"
    bottleneck_kernel: Literal[1, 3, 5] = 1
    """The window of a block's first convolution; in family `mobile` of every depthwise one inside a block."""
    head_kernel: Literal[1, 3] = 3
    reg_max: Count = 16
    input_size: Annotated[int, Field(gt=0, multiple_of=32)] = 640
    """Side of the square input in pixels."""
    score_threshold: Share = 0.05
    """Lowest score of a detection in evaluation; for serving see the manifest."""
    nms_iou: Share = 0.7
    """Overlap above which evaluation suppresses the weaker of two boxes of a class."""

    @property
    def evaluation(self) -> Thresholds:
        """The thresholds under which the structure's average precision is measured."""
        return Thresholds(score=self.score_threshold, nms_iou=self.nms_iou, max_detections=500)

    def __post_init__(self) -> None:
        width = self.stem_channels
        for index, stage in enumerate(self.stages, start=1):
            if stage.in_channels != width:
                raise StructureError(f"{self.name}: stage {index} takes {stage.in_channels} channels, gets {width}")
            if stage.stride not in (1, 2) or stage.depth < 1:
                raise StructureError(f"{self.name}: stage {index} needs stride 1 or 2 and at least one block")
            if self.family == "csp" and not _has_csp_form(stage, first=index == 1):
                raise StructureError(
                    f"{self.name}: stage {index} of family csp needs an even width, and stride 2 where it is the "
                    "first or changes the width"
                )
            width = stage.out_channels
        reached = {stride for _, stride in self._cumulative_strides()}
        if not set(STRIDES) <= reached or max(reached) != STRIDES[-1]:
            raise StructureError(f"{self.name}: stages reach strides {sorted(reached)}, the neck needs {STRIDES}")
        self._check_neck()

    def _check_neck(self) -> None:
        for width in (*self.feature_channels[1:], *self.neck.out_channels):
            if width < 2:
                raise StructureError(f"{self.name}: the neck halves its channels, so it cannot have {width}")
            if self.family != "mobile" and (width - width // 2) * self.neck.hidden_ratio < 1:
                raise StructureError(f"{self.name}: hidden_ratio leaves nothing of half of {width} channels")

    @property
    def taps(self) -> tuple[int, int, int]:
        """Zero-based stages whose outputs feed the neck: the last one at each of the strides 8, 16, 32."""
        last = {stride: index for index, stride in self._cumulative_strides()}
        return last[8], last[16], last[32]

    @property
    def feature_channels(self) -> tuple[int, int, int]:
        """Widths of the backbone outputs at strides 8, 16, 32."""
        fine, middle, coarse = (self.stages[index].out_channels for index in self.taps)
        return fine, middle, coarse

    def _cumulative_strides(self) -> list[tuple[int, int]]:
        stride, reached = 2, []  # the stem halves once
        for index, stage in enumerate(self.stages):
            stride *= stage.stride
            reached.append((index, stride))
        return reached


def _has_csp_form(stage: StageStructure, first: bool) -> bool:
    """A stage of stride 1 only lengthens the chain of the one before it, at that one's width."""
    grows = first or stage.in_channels != stage.out_channels
    return stage.out_channels % 2 == 0 and (stage.stride == 2 or not grows)


_ADAPTER: Final = TypeAdapter(Structure)


def structure_to_dict(structure: Structure) -> dict[str, Any]:
    """Gives all fields as plain values that JSON and YAML hold."""
    fields: dict[str, Any] = _ADAPTER.dump_python(structure, mode="json")
    return fields


def structure_from_dict(fields: Mapping[str, Any]) -> Structure:
    """The inverse of `structure_to_dict`; fields with a default may be absent. Raises StructureError."""
    try:
        return _ADAPTER.validate_python(fields)
    except ValidationError as error:
        raise StructureError(describe_faults(error)) from error


def multiple_of_8(width: float) -> int:
    """The multiple of 8 nearest to a width, or the next one where that lies more than a tenth below it.

    The rule of MobileNetV2's released code (arXiv 1801.04381).
    """
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * width else nearest + 8
