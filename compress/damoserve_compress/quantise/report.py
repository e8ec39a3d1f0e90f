"""The record of a quantisation; `dataclasses.asdict` makes plain values of it."""

from dataclasses import dataclass

from damoserve_compress.quantise.mixed import Decision
from damoserve_compress.quantise.observe import Calibration
from damoserve_compress.quantise.ranges import Method
from damoserve_compress.quantise.sensitivity import Sensitivity
from damoserve_compress.quantise.write import OperatorSet


@dataclass(frozen=True)
class TensorRange:
    """What the 8 bits of one activation cover."""

    tensor: str
    low: float
    high: float
    method: Method
    error: float
    """Expected squared error of one value, in the tensor's own unit."""


@dataclass(frozen=True)
class OperatorTime:
    """One op set, timed beside the others."""

    operators: OperatorSet
    milliseconds: float
    """Median of one image on one thread."""


@dataclass(frozen=True)
class QuantisationReport:
    """How an 8-bit graph came to be."""

    calibration: Calibration
    instruction_set: str
    """Of the processor it was made on."""
    reduce_range: bool
    """Whether weights have 7 bits."""
    operators: OperatorSet
    operator_times: tuple[OperatorTime, ...]
    """Empty where the recipe names the op set."""
    tensors: tuple[TensorRange, ...]
    bias_shifts: dict[str, float]
    """By group, the root mean square over its channels of what was added to the bias."""
    sensitivity: tuple[Sensitivity, ...]
    """The most harmful first; empty where it was not measured."""
    float_ap: float | None
    """Of the float graph on the selection images, where there is a budget."""
    ap: float | None
    """Of the result on them."""
    decisions: tuple[Decision, ...]
    float_groups: tuple[str, ...]
    """Groups that stay in float."""
