"""Reads the parameters of a request that mean something here, and checks their types and ranges."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from damoserve.kserve.v2 import inference_pb2 as pb
from damoserve_server.detection.request import MAX_DETECTIONS
from damoserve_server.errors import ArgumentOutOfRange
from damoserve_server.kserve.reserved import OF_REQUEST, refuse_ignored
from damoserve_server.kserve.values import INTEGERS, NUMBERS, TEXT, value_of
from damoserve_server.models.catalogue import MAX_SHOWN
from damoserve_server.scheduling.selection import Tier


@dataclass(frozen=True)
class DetectionParameters:
    """The options of a request. `timeout` is in seconds, `priority` 0 stands for none."""

    profile: str | None = None
    latency_tier: Tier | None = None
    min_accuracy: float = 0.0
    score_threshold: float | None = None
    max_detections: int | None = None
    priority: int = 0
    timeout: float | None = None


def to_detection_parameters(request: pb.ModelInferRequest) -> DetectionParameters:
    """Reads the parameters of a request. Raises ParameterInvalid, ArgumentOutOfRange or NotOffered."""
    refuse_ignored("parameters", request.parameters, OF_REQUEST, request, read=READERS)
    present = [name for name in READERS if name in request.parameters]
    return DetectionParameters(**{name: READERS[name](name, request.parameters[name]) for name in present})


def _text(name: str, parameter: pb.InferParameter) -> str | None:
    return _value(name, parameter, TEXT) or None


def _tier(name: str, parameter: pb.InferParameter) -> Tier:
    tier = _value(name, parameter, TEXT)
    if tier not in list(Tier):
        raise _out_of_range(name, repr(tier[:MAX_SHOWN]), f"one of {', '.join(Tier)}")
    return Tier(tier)


def _fraction(name: str, parameter: pb.InferParameter) -> float:
    value = _value(name, parameter, NUMBERS)
    if not 0 <= value <= 1:  # so written, it refuses NaN too
        raise _out_of_range(name, f"{value:g}", "between 0 and 1")
    return float(value)


def _max_detections(name: str, parameter: pb.InferParameter) -> int:
    count = _integer(name, parameter)
    if not 1 <= count <= MAX_DETECTIONS:
        raise _out_of_range(name, str(count), f"between 1 and {MAX_DETECTIONS}")
    return count


def _natural(name: str, parameter: pb.InferParameter) -> int:
    value = _integer(name, parameter)
    if value < 0:
        raise _out_of_range(name, str(value), "0 or more")
    return value


def _timeout(name: str, parameter: pb.InferParameter) -> float | None:
    return _natural(name, parameter) / 1e6 or None


def _integer(name: str, parameter: pb.InferParameter) -> int:
    return int(_value(name, parameter, INTEGERS))


def _value(name: str, parameter: pb.InferParameter, kinds: frozenset[str]) -> Any:
    return value_of(f"parameters.{name}", parameter, kinds)


def _out_of_range(name: str, value: str, allowed: str) -> ArgumentOutOfRange:
    return ArgumentOutOfRange(f"parameters.{name}", f"{name} is {value}; it must be {allowed}", value=value)


READERS: Mapping[str, Callable[[str, pb.InferParameter], Any]] = {
    "profile": _text,
    "latency_tier": _tier,
    "min_accuracy": _fraction,
    "score_threshold": _fraction,
    "max_detections": _max_detections,
    "priority": _natural,
    "timeout": _timeout,
}
"""The function that reads each parameter. The names are those of the fields of DetectionParameters."""
