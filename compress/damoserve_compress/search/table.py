"""A latency table: what convolutions cost on one machine, as a file.

TableError (ValueError)   the file is damaged, of another machine, or lacks what is asked of it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from damoserve_compress.measure.runtime import ONNX_RUNTIME
from damoserve_compress.measure.timing import cpu_name, instruction_set
from damoserve_compress.network.structures import Structure, structure_to_dict
from damoserve_compress.search.operators import Convolution, ConvolutionKind
from damoserve_profiles.faults import describe_faults
from damoserve_profiles.files import replace_text
from damoserve_profiles.imaging import Size

Count = Annotated[int, Field(gt=0)]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
THREADS: Final = 1


class TableError(ValueError):
    """The table cannot be used; the message says what to do."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Strict):
    """The machine that the latencies hold for."""

    cpu: str
    instruction_set: str
    runtime: str
    threads: Count

    def __str__(self) -> str:
        return f"{self.cpu} ({self.instruction_set}), {self.runtime}, {self.threads} thread(s)"


class Slab(_Strict):
    """A grid of convolutions of one kind: every width taken with every width given, on every square map.

    Depthwise ones give as many channels as they take: `outputs` is then (1,), and means nothing.
    """

    kernel: Count
    stride: Count
    form: Literal["dense", "depthwise", "image"] = "dense"
    inputs: Annotated[tuple[Count, ...], Field(min_length=1)]
    outputs: Annotated[tuple[Count, ...], Field(min_length=1)]
    sides: Annotated[tuple[Count, ...], Field(min_length=1)]
    """The sides of the output, in pixels."""

    @property
    def kind(self) -> ConvolutionKind:
        return ConvolutionKind(self.kernel, self.stride, self.form)

    def points(self) -> Iterator[Convolution]:
        """The convolutions of the grid, in the order of an array `[inputs, outputs, sides]`."""
        for taken in self.inputs:
            for given in self.outputs:
                for side in self.sides:
                    width = taken if self.form == "depthwise" else given
                    yield Convolution(self.kind, taken, width, side, side)


_WIDTHS: Final = (16, 32, 64, 128, 256)
_SIDES: Final = (13, 26, 52, 104)


def slabs_for(structure: Structure) -> tuple[Slab, ...]:
    """The grids to measure for structures of this one's family and kernels."""
    mobile = structure.family == "mobile"
    image = Slab(kernel=3 if mobile else 6, stride=2, form="image", inputs=(3,), outputs=(16, 32, 64), sides=(104, 208))
    kernels = {1, structure.bottleneck_kernel, structure.head_kernel}
    dense = {(1, 1), (structure.head_kernel, 1)} if mobile else {(3, 2), (3, 1), *((kernel, 1) for kernel in kernels)}
    depthwise = {(structure.bottleneck_kernel, 1), (structure.bottleneck_kernel, 2), (3, 2)} if mobile else set()
    return (
        image,
        *(Slab(kernel=k, stride=s, inputs=_WIDTHS, outputs=_WIDTHS, sides=_SIDES) for k, s in sorted(dense)),
        *(
            Slab(kernel=k, stride=s, form="depthwise", inputs=(*_WIDTHS, 512), outputs=(1,), sides=_SIDES)
            for k, s in sorted(depthwise)
        ),
    )


class PairedTiming(_Strict):
    """Median milliseconds, and those of the reference convolution in the same interleaved rounds.

    Only their ratio is used: the machine may be slower today than it was yesterday.
    """

    ms: Milliseconds
    reference_ms: Milliseconds


class LatencyTable(BaseModel):
    """Timings of single convolutions and of whole networks. Grows while it is measured."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    machine: Machine
    slabs: list[Slab] = []
    timings: dict[str, PairedTiming] = {}
    networks: dict[str, PairedTiming] = {}

    def plan(self, slabs: Iterable[Slab]) -> None:
        """Adds those of kinds that the table does not have yet."""
        self.slabs += [slab for slab in slabs if slab.kind not in {known.kind for known in self.slabs}]

    def missing(self) -> list[Convolution]:
        """The convolutions that are planned and not measured yet."""
        return [point for slab in self.slabs for point in slab.points() if key(point) not in self.timings]

    def milliseconds(self, timing: PairedTiming) -> float:
        """The time that was measured, as if the machine were as fast as it mostly was while the table was filled."""
        return self._usual() * timing.ms / timing.reference_ms

    def _usual(self) -> float:
        return float(np.median([timing.reference_ms for timing in self.timings.values()]))

    def digest(self) -> str:
        """The SHA-256 of what predictions are made from."""
        text = self.model_dump_json(include={"slabs", "timings"})
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, path: Path) -> None:
        replace_text(path, self.model_dump_json(indent=1) + "\n")


def network_key(structure: Structure, size: Size, num_classes: int) -> str:
    """The name of a whole network in the table."""
    digest = hashlib.sha256(json.dumps(structure_to_dict(structure), sort_keys=True).encode()).hexdigest()[:12]
    return f"{structure.name} {digest} {size.width}x{size.height}, {num_classes} classes"


def key(point: Convolution) -> str:
    """The name of a convolution in the table."""
    return f"{point.kind} {point.in_channels}>{point.out_channels} {point.width}x{point.height}"


def this_machine() -> Machine:
    """Describes the machine at hand, as manifests do."""
    return Machine(cpu=cpu_name(), instruction_set=instruction_set(), runtime=ONNX_RUNTIME.version(), threads=THREADS)


def open_table(path: Path) -> LatencyTable:
    """The table in a file, or an empty one where there is no file.

    Raises TableError for a file that is damaged, or that was measured on another machine or runtime.
    """
    here = this_machine()
    try:
        table = LatencyTable.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return LatencyTable(machine=here)
    except ValidationError as error:
        raise TableError(f"{path} is no latency table: {describe_faults(error)}") from error
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error}") from error
    if table.machine != here:
        raise TableError(
            f"{path} was measured on {table.machine}, this is {here}: name another file with --table to measure here"
        )
    return table
