"""Turns a ModelInferRequest into images and options, and checks all but the images themselves. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from damoserve.kserve.v2 import inference_pb2 as pb
from damoserve_server.detection.request import DetectionRequest
from damoserve_server.errors import ArgumentOutOfRange, ParameterInvalid, ProfileAndTier, TensorInvalid
from damoserve_server.inputs.images import Image
from damoserve_server.kserve.parameters import DetectionParameters, to_detection_parameters
from damoserve_server.kserve.reserved import OF_INPUT, OF_OUTPUT, refuse_ignored
from damoserve_server.kserve.targets import join_name, split_name
from damoserve_server.kserve.tensors import CONTENTS, IMAGES, INPUTS, MAX_IMAGES, OUTPUTS, PIXELS, Tensor, unpack
from damoserve_server.models.catalogue import MAX_SHOWN
from damoserve_server.scheduling.policy import LOWEST_PRIORITY

MAX_ID_LENGTH = 256
"""The longest id of a request, in characters."""

FILE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM")
"""The first bytes of JPEG, PNG, WebP and BMP files.

A lone file is accepted without its length: load tools send what they read from a disk. Nothing is mistaken for a file,
as only contents that do not begin with their length are looked at.
"""


@dataclass(frozen=True)
class Call:
    """A request that was checked: one detection for each image, and the outputs that the client asked for."""

    detections: Sequence[DetectionRequest]
    outputs: Sequence[Tensor]

    @property
    def deadline(self) -> float:
        return self.detections[0].deadline

    @property
    def target(self) -> str:
        return join_name(self.detections[0].model, self.detections[0].profile)


def to_call(request: pb.ModelInferRequest, arrival: float, time_remaining: float | None, default_budget: float) -> Call:
    """Returns the detections that a request asks for, its budget turned into a deadline.

    `arrival` is on the monotonic clock. In seconds are `time_remaining`, until the deadline of the gRPC call, and
    `default_budget`, for a call with neither a deadline nor a timeout. Raises InvalidRequest or NotOffered.
    """
    if len(request.id) > MAX_ID_LENGTH:
        raise ArgumentOutOfRange("id", f"the id has {len(request.id)} characters; at most {MAX_ID_LENGTH} are accepted")
    parameters = to_detection_parameters(request)
    model, profile = _address(request.model_name, parameters)
    budgets = [budget for budget in (time_remaining, parameters.timeout) if budget is not None]
    outputs = _outputs(request)
    detections = [
        DetectionRequest(
            image=image,
            arrival=arrival,
            deadline=arrival + min(budgets, default=default_budget),
            model=model,
            profile=profile,
            tier=parameters.latency_tier,
            min_accuracy=parameters.min_accuracy,
            score_threshold=parameters.score_threshold,
            max_detections=parameters.max_detections,
            priority=min(
                parameters.priority or LOWEST_PRIORITY, LOWEST_PRIORITY
            ),  # 0 stands for none; any number is taken
        )
        for image in _images(request)
    ]
    return Call(detections, outputs)


def _address(name: str, parameters: DetectionParameters) -> tuple[str, str | None]:
    model, named = split_name(name)
    if named is not None and parameters.profile not in (None, named):
        raise ParameterInvalid("parameters.profile", f"the name of the model already names the profile {named!r}")
    profile = named or parameters.profile
    if profile is not None and parameters.latency_tier is not None:
        raise ProfileAndTier("parameters.latency_tier", "at most one of a profile and latency_tier may be given")
    return model, profile


def _outputs(request: pb.ModelInferRequest) -> Sequence[Tensor]:
    known = {output.name: output for output in OUTPUTS}
    requested: dict[str, Tensor] = {}
    for output in request.outputs:
        name = output.name[:MAX_SHOWN]
        if output.name not in known:
            raise TensorInvalid("outputs", f"there is no output {name!r}; there are {', '.join(known)}")
        if name in requested:
            raise TensorInvalid("outputs", f"the output {name!r} is asked for twice")
        refuse_ignored(f"outputs.{name}.parameters", output.parameters, OF_OUTPUT, request)
        requested[name] = known[name]
    return list(requested.values()) or OUTPUTS


def _images(request: pb.ModelInferRequest) -> Sequence[Image]:
    names = " or ".join(tensor.name for tensor in INPUTS)
    if len(request.inputs) != 1:
        raise TensorInvalid("inputs", f"there are {len(request.inputs)} inputs; there must be one, {names}")
    sent = request.inputs[0]
    tensor = next((tensor for tensor in INPUTS if tensor.name == sent.name), None)
    if tensor is None:
        raise TensorInvalid("inputs", f"there is no input {sent.name[:MAX_SHOWN]!r}; it must be {names}")
    if sent.datatype != tensor.datatype:
        raise _invalid(tensor, f"is {sent.datatype[:MAX_SHOWN]!r}; it must be {tensor.datatype}", "datatype")
    refuse_ignored(f"inputs.{tensor.name}.parameters", sent.parameters, OF_INPUT, request)
    shape = _shape(tensor, sent.shape)
    if not request.raw_input_contents:
        return _typed(tensor, sent.contents, shape)
    if sent.HasField("contents"):
        raise _invalid(tensor, "cannot be given together with raw_input_contents", "contents")
    if len(request.raw_input_contents) != 1:
        raise TensorInvalid("raw_input_contents", "there must be one entry for each input")
    return _raw(tensor, request.raw_input_contents[0], shape)


def _shape(tensor: Tensor, sent: Sequence[int]) -> tuple[int, ...]:
    """Returns the shape if the tensor may have it: the number of images, then `dims`, which `images` may leave out."""
    shape = tuple(sent[: len(tensor.dims) + 2])
    dims = () if tensor is IMAGES and len(shape) == 1 else tensor.dims
    fits = len(shape) == 1 + len(dims) and all(
        (length > 0 if required == -1 else length == required) for length, required in zip(shape[1:], dims, strict=True)
    )
    if not fits:
        raise _invalid(tensor, f"is {list(shape)}; it must be {[-1, *tensor.dims]}", "shape")
    if not 1 <= shape[0] <= MAX_IMAGES:
        raise _invalid(tensor, f"announces {shape[0]} images; there may be 1 to {MAX_IMAGES}", "shape")
    return shape


def _raw(tensor: Tensor, raw: bytes, shape: tuple[int, ...]) -> Sequence[Image]:
    if tensor is PIXELS:
        if len(raw) != math.prod(shape):
            raise TensorInvalid("raw_input_contents", f"{len(raw)} bytes do not fill the shape {list(shape)}")
        return list(np.frombuffer(raw, np.uint8).reshape(shape))
    try:
        return unpack(raw, shape[0])
    except ValueError as error:
        if shape[0] == 1 and raw.startswith(FILE_SIGNATURES):
            return [raw]
        raise TensorInvalid("raw_input_contents", str(error)) from error


def _typed(tensor: Tensor, contents: pb.InferTensorContents, shape: tuple[int, ...]) -> Sequence[Image]:
    field = CONTENTS[tensor.datatype]
    if any(other.name != field for other, _ in contents.ListFields()):
        raise _invalid(tensor, f"has other fields than {field}", "contents")
    elements: Any = getattr(contents, field)
    if len(elements) != math.prod(shape):
        raise _invalid(tensor, f"has {len(elements)} elements, which do not fill the shape {list(shape)}", "contents")
    if tensor is IMAGES:
        return list(elements)
    values = np.array(elements, np.uint32)
    if values.max() > np.iinfo(np.uint8).max:
        raise _invalid(tensor, "has elements above 255", "contents")
    return list(values.astype(np.uint8).reshape(shape))


def _invalid(tensor: Tensor, fault: str, part: str) -> TensorInvalid:
    return TensorInvalid(f"inputs.{tensor.name}.{part}", f"the {part} of the input {tensor.name} {fault}")
