"""Random steps from one structure to the next, with the rules of DAMO-YOLO's search.

Differences from the reference: every stage is drawn, where its newest version never draws the last one; widths are
multiples of 16, not of 8; a stage's width has no range of its own, for the budget counts neck and head; and the
cross-stage form keeps the stages that share a chain at one width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random
from typing import Final, Literal

from damoserve_compress.network.structures import StageStructure, Structure

FACTORS: Final = (2.0, 1.5, 1.25, 0.8, 0.6, 0.5)
STEPS: Final = (-2, -1, 1, 2)
FIRST_DEPTH: Final = 2
"""The most blocks of the first stage, where the map is largest."""
STEM_WIDTH: Final = 32
MAX_WIDTH: Final = 2048

Neck = Literal["fixed", "scaled"]


@dataclass(frozen=True)
class Space:
    """The space of structures that mutations can reach.

    The neck's outputs, and with them the head, keep the start's widths (`fixed`), or the start's ratios to the
    features that the neck takes (`scaled`). Inside, the neck is always as wide as these features. Raises ValueError
    for a `multiple` that is not even.
    """

    start: Structure
    multiple: int = 16
    """A divisor of every width that a mutation chooses; what none has touched stays as in the start."""
    max_depth: int = 4
    """Blocks in a stage; a start that has more may keep as many."""
    neck: Neck = "fixed"

    def __post_init__(self) -> None:
        if self.multiple < 2 or self.multiple % 2:
            raise ValueError(f"widths must be multiples of an even number, not of {self.multiple}: some are halved")

    def mutate(self, structure: Structure, rng: Random) -> Structure:
        """Takes one or two random steps, each of one block: the stem's width, or a stage's width, bottleneck or depth.

        A step that the rules do not leave room for changes nothing. The result can always be built.
        """
        for _ in range(rng.randint(1, 2)):
            index = rng.randrange(len(structure.stages) + 1) - 1
            change = "width" if index < 0 else rng.choice(("width", "bottleneck", "depth"))
            structure = self._changed(structure, index, change, rng)
        return self._with_neck(structure)

    def _changed(self, structure: Structure, index: int, change: str, rng: Random) -> Structure:
        if change == "width":
            return self._widened(structure, index, rng.choice(FACTORS))
        stages = list(structure.stages)
        stage = stages[index]
        if change == "depth":
            limit = max(FIRST_DEPTH if index == 0 else self.max_depth, self.start.stages[index].depth)
            stages[index] = replace(stage, depth=min(max(stage.depth + rng.choice(STEPS), 1), limit))
        else:
            low, high = self._bottlenecks(stage.out_channels)
            width = self._near(stage.bottleneck * rng.choice(FACTORS), low, high)
            stages[index] = replace(stage, bottleneck=width or stage.bottleneck)
        return replace(structure, stages=tuple(stages))

    def _widened(self, structure: Structure, index: int, factor: float) -> Structure:
        """Changes the width of a stage, or of the stem (index -1): never below the one before or above the next."""
        stages = list(structure.stages)
        first, last = self._same_width(structure, index)
        old = stages[index].out_channels if index >= 0 else structure.stem_channels
        low = 1 if first < 0 else stages[first].in_channels
        high = stages[last + 1].out_channels if last + 1 < len(stages) else MAX_WIDTH
        if index < 0:
            high = min(high, max(STEM_WIDTH, self.start.stem_channels))
        width = self._near(old * factor, low, high)
        if width is None:
            return structure
        for position in range(max(first, 0), last + 1):
            taken = stages[position].in_channels if position == first else width
            stages[position] = self._fitted(replace(stages[position], in_channels=taken, out_channels=width))
        if last + 1 < len(stages):
            stages[last + 1] = replace(stages[last + 1], in_channels=width)
        return replace(structure, stem_channels=width if index < 0 else structure.stem_channels, stages=tuple(stages))

    def _same_width(self, structure: Structure, index: int) -> tuple[int, int]:
        """The first and the last stage that cannot but have the width of this one."""
        first = last = index
        if structure.family == "csp" and index >= 0:
            while structure.stages[first].stride == 1:
                first -= 1
            while last + 1 < len(structure.stages) and structure.stages[last + 1].stride == 1:
                last += 1
        return first, last

    def _bottlenecks(self, width: int) -> tuple[float, float]:
        """The narrowest and the widest that a block of this width may be inside."""
        return (width, 8 * width) if self.start.family == "mobile" else (width / 10, width)

    def _fitted(self, stage: StageStructure) -> StageStructure:
        low, high = self._bottlenecks(stage.out_channels)
        if low <= stage.bottleneck <= high:
            return stage
        return replace(stage, bottleneck=self._near(stage.bottleneck, low, high) or stage.out_channels)

    def _near(self, width: float, low: float, high: float) -> int | None:
        """The nearest multiple in a range that has one."""
        least, most = math.ceil(low / self.multiple), math.floor(high / self.multiple)
        if max(least, 1) > most:
            return None
        return min(max(round(width / self.multiple), least, 1), most) * self.multiple

    def _with_neck(self, structure: Structure) -> Structure:
        if self.neck == "fixed":
            return structure
        pairs = zip(self.start.neck.out_channels, self.start.feature_channels, structure.feature_channels, strict=True)
        one, two, three = (
            given if now == then else max(round(given * now / then / self.multiple), 1) * self.multiple
            for given, then, now in pairs
        )
        return replace(structure, neck=replace(structure.neck, out_channels=(one, two, three)))
