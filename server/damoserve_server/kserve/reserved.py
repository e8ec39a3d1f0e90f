"""Decides about the parameters that Triton reserves for features of its own.

Clients send many of them with every request, whether they use the feature or not. So what counts is the value: one that
asks for nothing is accepted, one that asks for what would not happen is refused. `docs/kserve.md` has the whole list.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from damoserve.kserve.v2 import inference_pb2 as pb
from damoserve_server.errors import NotOffered, ParameterInvalid
from damoserve_server.kserve.values import FLAG, INTEGERS, TEXT, value_of
from damoserve_server.models.catalogue import MAX_SHOWN

Parameters = Mapping[str, pb.InferParameter]

SEQUENCES = "sequences are not offered: every request stands alone"
SHARED_MEMORY = "shared memory is not offered: send the tensors in the request"
CLASSIFICATION = "classification is not offered: labels and scores are outputs"
HEADERS = "headers are no parameters: send them as metadata of the call"
RAW_ANSWERS = "binary data belongs to HTTP: answers are raw when the request is"
RAW_SIZE = "binary data belongs to HTTP: the size may only be that of raw_input_contents"
PREFIX = "triton_"
"""The beginning of all other names that Triton reserves."""
OTHERS_OF_TRITON = "parameters that begin with triton_ are reserved, and this one is not offered"


def _asks_for_nothing(value: Any, request: pb.ModelInferRequest) -> bool:
    """Says whether the parameter asks for nothing, as false, zero and an empty text do."""
    return not value


def _never(value: Any, request: pb.ModelInferRequest) -> bool:
    return False


def _always(value: Any, request: pb.ModelInferRequest) -> bool:
    return True


def _is_answered_raw(value: Any, request: pb.ModelInferRequest) -> bool:
    return not value or bool(request.raw_input_contents)


def _is_size_of_input(value: Any, request: pb.ModelInferRequest) -> bool:
    """Says whether the value is the size of the input, in bytes. All raw contents belong to it: there is no other."""
    return bool(value == sum(map(len, request.raw_input_contents)))


@dataclass(frozen=True)
class Reserved:
    """A reserved parameter, and which of its values may be ignored."""

    kinds: frozenset[str]
    """The types that it may have: fields of InferParameter."""
    refusal: str
    """The message of the error for a value that may not be ignored."""
    may_ignore: Callable[[Any, pb.ModelInferRequest], bool] = _asks_for_nothing


IN_SHARED_MEMORY = {
    "shared_memory_region": Reserved(TEXT, SHARED_MEMORY, _never),  # an empty name is a name as well
    "shared_memory_byte_size": Reserved(INTEGERS, SHARED_MEMORY, _never),
    "shared_memory_offset": Reserved(INTEGERS, SHARED_MEMORY, _never),
}

OF_REQUEST: Mapping[str, Reserved] = {
    "sequence_id": Reserved(INTEGERS | TEXT, SEQUENCES),
    "sequence_start": Reserved(FLAG, SEQUENCES),
    "sequence_end": Reserved(FLAG, SEQUENCES),
    "headers": Reserved(TEXT, HEADERS),
    "binary_data_output": Reserved(FLAG, RAW_ANSWERS, _is_answered_raw),
    # Triton sends an empty answer after those of a decoupled model, so that the end is known. Ours sends one answer to
    # each request, and a stream says in it that it is the last.
    "triton_enable_empty_final_response": Reserved(FLAG, OTHERS_OF_TRITON, _always),
}
OF_INPUT: Mapping[str, Reserved] = {
    "binary_data_size": Reserved(INTEGERS, RAW_SIZE, _is_size_of_input),
    **IN_SHARED_MEMORY,
}
OF_OUTPUT: Mapping[str, Reserved] = {
    "classification": Reserved(INTEGERS, CLASSIFICATION),
    "binary_data": Reserved(FLAG, RAW_ANSWERS, _is_answered_raw),
    **IN_SHARED_MEMORY,
}


def refuse_ignored(
    field: str,
    parameters: Parameters,
    reserved: Mapping[str, Reserved],
    request: pb.ModelInferRequest,
    read: Iterable[str] = (),
) -> None:
    """Refuses the parameters that are neither in `read` nor may be ignored.

    `field` is the path of the parameters in the request. Raises ParameterInvalid or NotOffered.
    """
    for name in sorted(parameters.keys() - set(read)):
        rule = reserved.get(name)
        shown = name[:MAX_SHOWN]
        if rule is None and name.startswith(PREFIX):
            raise NotOffered(OTHERS_OF_TRITON, parameter=shown)
        if rule is None:
            raise ParameterInvalid(field, f"there is no parameter {shown!r} here", parameter=shown)
        if not rule.may_ignore(value_of(f"{field}.{name}", parameters[name], rule.kinds), request):
            raise NotOffered(rule.refusal, parameter=name)
