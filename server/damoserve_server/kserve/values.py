"""Reads the value of one parameter, and checks its type."""

from typing import Any

from damoserve.kserve.v2 import inference_pb2 as pb
from damoserve_server.errors import ParameterInvalid

FLAG = frozenset({"bool_param"})
INTEGERS = frozenset({"int64_param", "uint64_param"})
NUMBERS = frozenset({"double_param"}) | INTEGERS
TEXT = frozenset({"string_param"})


def value_of(field: str, parameter: pb.InferParameter, kinds: frozenset[str]) -> Any:
    """Returns the value of a parameter that may have these types, fields of InferParameter.

    `field` is the path of the parameter in the request, its name the last part. Raises ParameterInvalid.
    """
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in kinds:
        name = field.rpartition(".")[2]
        raise ParameterInvalid(field, f"{name} is a {kind}; it must be a {' or '.join(sorted(kinds))}")
    return getattr(parameter, kind)
