"""The record of a quantisation; `dataclasses.asdict` makes plain values of it."""

from dataclasses import dataclass

from damoserve_compress.quantise.mixed import Decision
from damoserve_compress.quantise.observe import Calibration
from damoserve_compress.quantise.ranges import Method
from damoserve_compress.quantise.sensitivity import Sensitivity
from damoserve_compress.quantise.write import OperatorSet


@dataclass(frozen=True)
class TensorRange:
    """The range that the 8 bits of one activation cover."""

    tensor: str
    low: float
    high: float
    method: Method
    error: float
    """Expected squared error of one value, in the tensor's own unit."""


@dataclass(frozen=True)
class OperatorTime:
    """An op set, timed beside the others."""

    operators: OperatorSet
    milliseconds: float
    """Median of one image on one thread."""


@dataclass(frozen=True)
class QuantisationReport:
    """The record of how an 8-bit graph was made."""

    calibration: Calibration
    instruction_set: str
    """The instruction set of the processor that it was made on."""
    reduce_range: bool
    """True where weights have 7 bits."""
    operators: OperatorSet
    operator_times: tuple[OperatorTime, ...]
    """Empty where the recipe names the op set."""
    tensors: tuple[TensorRange, ...]
    bias_shifts: dict[str, float]
    """The root mean square of what was added to the biases of each group's channels."""
    sensitivity: tuple[Sensitivity, ...]
    """The most harmful first; empty where it was not measured."""
    float_ap: float | None
    """The average precision of the float graph on the selection images, where there is a budget."""
    ap: float | None
    """The average precision of the result on the selection images."""
    decisions: tuple[Decision, ...]
    float_groups: tuple[str, ...]
    """Groups that stay in float."""
