"""What a DAMO-YOLO variant is made of, as plain data: the widths and depths the modules are built from.

StructureError (ValueError)    a structure whose parts do not fit together
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

STRIDES: Final = (8, 16, 32)


class StructureError(ValueError):
    """The parts of a structure do not fit together, or a variant name is unknown."""


@dataclass(frozen=True)
class StageStructure:
    """One backbone stage: `depth` residual blocks, the first of which has the stride (1 or 2)."""

    in_channels: int
    out_channels: int
    bottleneck: int
    depth: int
    stride: int = 2


@dataclass(frozen=True)
class NeckStructure:
    """RepGFPN: widths of its three outputs (strides 8, 16, 32) and the shape of its fusion blocks.

    `blocks` is what upstream configurations write as `round(3 * depth)`.
    """

    out_channels: tuple[int, int, int]
    blocks: int = 3
    hidden_ratio: float = 1.0


@dataclass(frozen=True)
class Structure:
    """A whole detector. `family` and `activation` name entries of the registries in `backbone` and `blocks`."""

    name: str
    stem_channels: int
    stages: tuple[StageStructure, ...]
    neck: NeckStructure
    family: str = "res"
    activation: str = "relu"
    bottleneck_kernel: int = 1
    head_kernel: int = 3
    reg_max: int = 16

    def __post_init__(self) -> None:
        width = self.stem_channels
        for index, stage in enumerate(self.stages, start=1):
            if stage.in_channels != width:
                raise StructureError(f"{self.name}: stage {index} takes {stage.in_channels} channels, gets {width}")
            if stage.stride not in (1, 2) or stage.depth < 1:
                raise StructureError(f"{self.name}: stage {index} needs stride 1 or 2 and at least one block")
            width = stage.out_channels
        reached = {stride for _, stride in self._cumulative_strides()}
        if not set(STRIDES) <= reached or max(reached) != STRIDES[-1]:
            raise StructureError(f"{self.name}: stages reach strides {sorted(reached)}, the neck needs {STRIDES}")

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


T: Final = Structure(
    name="T",
    stem_channels=24,
    stages=(
        StageStructure(24, 64, bottleneck=24, depth=2),
        StageStructure(64, 96, bottleneck=64, depth=2),
        StageStructure(96, 192, bottleneck=96, depth=2),
        StageStructure(192, 192, bottleneck=152, depth=2, stride=1),
        StageStructure(192, 384, bottleneck=192, depth=1),
    ),
    neck=NeckStructure(out_channels=(64, 128, 256)),
)

P: Final = Structure(
    name="P",
    stem_channels=16,
    stages=(
        StageStructure(16, 32, bottleneck=16, depth=2),
        StageStructure(32, 48, bottleneck=32, depth=2),
        StageStructure(48, 96, bottleneck=48, depth=2),
        StageStructure(96, 96, bottleneck=80, depth=2, stride=1),
        StageStructure(96, 192, bottleneck=96, depth=1),
    ),
    neck=NeckStructure(out_channels=(32, 64, 128)),
)

VARIANTS: Final[Mapping[str, Structure]] = MappingProxyType({structure.name: structure for structure in (T, P)})


def find_structure(variant: str) -> Structure:
    """The structure of a named variant; raises StructureError for a name not in VARIANTS."""
    try:
        return VARIANTS[variant]
    except KeyError:
        raise StructureError(f"unknown variant {variant!r}, known: {', '.join(VARIANTS)}") from None
