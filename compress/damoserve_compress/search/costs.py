"""Costs of structures, and budgets for them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from damoserve_compress.network.structures import Structure
from damoserve_compress.search.operators import convolutions, depth
from damoserve_compress.search.predict import LatencyModel
from damoserve_profiles.imaging import Size

_SCALES = 3


@dataclass(frozen=True)
class Costs:
    """The costs of a structure's deploy form, for one image."""

    parameters: int
    macs: int
    depth: int
    """Convolutions of the backbone one after the other."""
    latency_ms: float | None = None
    """Predicted; None where there is no latency table."""


@dataclass(frozen=True)
class Budget:
    """The most that a structure may cost; what is not given is not limited."""

    parameters: float = math.inf
    macs: float = math.inf
    depth: float = math.inf
    latency_ms: float = math.inf

    def limits(self) -> dict[str, float | None]:
        """The limits by name; None where there is none."""
        return {name: limit if math.isfinite(limit) else None for name, limit in asdict(self).items()}

    def excess(self, costs: Costs) -> str:
        """Says in words which costs exceed the budget; empty where none does."""
        return ", ".join(self._excesses(costs))

    def _excesses(self, costs: Costs) -> Iterator[str]:
        limits = asdict(self)
        for name, value in asdict(costs).items():
            if value is not None and value > limits[name]:
                yield f"{name} {value:.10g} above {limits[name]:.10g}"


@dataclass(frozen=True, eq=False)
class CostModel:
    """Costs of structures at one size of input, for one number of classes."""

    size: Size
    num_classes: int
    latency: LatencyModel | None = None

    def __call__(self, structure: Structure) -> Costs:
        """Raises TableError where the latency table lacks a kind of convolution."""
        parts = list(convolutions(structure, self.size, self.num_classes))
        return Costs(
            parameters=sum(part.parameters for part in parts) + _SCALES,  # the head's
            macs=sum(part.macs for part in parts),
            depth=depth(structure),
            latency_ms=self.latency.network(structure, self.size, self.num_classes) if self.latency else None,
        )
