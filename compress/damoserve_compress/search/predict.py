"""Latencies of structures from a latency table."""

from __future__ import annotations

import math
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from damoserve_compress.network.structures import Structure
from damoserve_compress.search.operators import Convolution, convolutions
from damoserve_compress.search.table import LatencyTable, PairedTiming, Slab, TableError, key
from damoserve_profiles.imaging import Size

BLOCK: Final = 16
"""ONNX Runtime's float kernels take up to this many channels at once: a width costs what the next multiple does."""


class LatencyModel:
    """Milliseconds of one convolution, and of a network as the sum of its convolutions.

    The time for each multiplication is interpolated between the table's, linearly in the logarithms of it, of the two
    widths and of the map's pixels; beyond the table's ends it stays what it is there.

    What else a network does is neither in the table nor left out: the sum is multiplied by what makes it right for a
    reference network that was measured whole, 1 as long as `calibrate` was not called.
    """

    def __init__(self, table: LatencyTable) -> None:
        """Raises TableError where the table is not complete."""
        if missing := len(table.missing()):
            raise TableError(f"the latency table lacks {missing} convolutions: measure it to the end")
        self.table = table
        self.factor = 1.0
        self._rates = {slab.kind: (slab, self._log_rates(slab)) for slab in table.slabs}
        self.convolution = cache(self._convolution)

    def calibrate(self, structure: Structure, size: Size, num_classes: int, measured: PairedTiming) -> None:
        """Makes `network` answer what was measured for this one."""
        self.factor = 1.0
        self.factor = self.table.milliseconds(measured) / self.network(structure, size, num_classes)

    def network(self, structure: Structure, size: Size, num_classes: int) -> float:
        """Predicts the milliseconds of one image on one thread. Raises TableError for kinds that were not measured."""
        return self.factor * sum(self.convolution(point) for point in convolutions(structure, size, num_classes))

    def _log_rates(self, slab: Slab) -> NDArray[np.float64]:
        points = list(slab.points())
        rates = [self.table.milliseconds(self.table.timings[key(point)]) / point.macs for point in points]
        return np.log(rates).reshape(len(slab.inputs), len(slab.outputs), len(slab.sides))

    def _convolution(self, point: Convolution) -> float:
        found = self._rates.get(point.kind)
        if found is None:
            raise TableError(f"the latency table holds no convolution {point.kind}: plan and measure it first")
        slab, rates = found
        whole = _in_blocks(point)
        side = math.log(point.height * point.width) / 2
        by_output = [[_interpolate(side, slab.sides, row) for row in rows] for rows in rates]
        by_input = [_interpolate(math.log(whole.out_channels), slab.outputs, row) for row in by_output]
        return math.exp(_interpolate(math.log(whole.in_channels), slab.inputs, by_input)) * whole.macs


def _interpolate(x: float, axis: tuple[int, ...], values: NDArray[np.float64] | list[float]) -> float:
    return float(np.interp(x, np.log(axis), values))


def _in_blocks(point: Convolution) -> Convolution:
    taken, given = (-(-width // BLOCK) * BLOCK for width in (point.in_channels, point.out_channels))
    is_image = point.kind.form == "image"
    return point._replace(in_channels=point.in_channels if is_image else taken, out_channels=given)
