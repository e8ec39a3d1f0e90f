"""Turns results into the tensors and parameters of a ModelInferResponse. Pure functions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from damoserve.kserve.v2 import inference_pb2 as pb
from damoserve_server.detection.request import DetectionResult
from damoserve_server.kserve.tensors import (
    BOXES,
    CONTENTS,
    COUNT,
    IMAGE_SIZE,
    LABEL_NAMES,
    LABELS,
    SCORES,
    Tensor,
    pack,
)

Results = Sequence[DetectionResult]

NO_LABEL = -1
"""The filler of `labels` in rows that are shorter than the longest."""

FINAL = "triton_final_response"
"""Triton's parameter which says in a stream that an answer is the last to its request; here each request has one."""

DTYPES: Mapping[str, Any] = {"FP32": "<f4", "INT32": "<i4", "BYTES": np.object_}
"""NumPy's name for each datatype of the protocol; the bytes of raw contents are in this order."""


def to_response(request: pb.ModelInferRequest, results: Results, outputs: Iterable[Tensor]) -> pb.ModelInferResponse:
    """Returns the answer with these outputs; `results` has one for each image of the request."""
    served = results[0].profile.manifest
    response = pb.ModelInferResponse(
        model_name=request.model_name or served.model,
        model_version=str(served.version),
        id=request.id,
        parameters=_parameters(results),
    )
    for tensor in outputs:
        values = VALUES[tensor](results).astype(DTYPES[tensor.datatype])
        output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=values.shape)
        if request.raw_input_contents:
            raw = pack(values.ravel()) if tensor.datatype == "BYTES" else values.tobytes()
            response.raw_output_contents.append(raw)
        else:
            getattr(output.contents, CONTENTS[tensor.datatype]).extend(values.ravel())
    return response


def to_stream_response(response: pb.ModelInferResponse) -> pb.ModelStreamInferResponse:
    response.parameters[FINAL].bool_param = True
    return pb.ModelStreamInferResponse(infer_response=response)


def to_stream_failure(request: pb.ModelInferRequest, message: str) -> pb.ModelStreamInferResponse:
    failure = to_stream_response(pb.ModelInferResponse(id=request.id))
    failure.error_message = message
    return failure


def _parameters(results: Results) -> dict[str, pb.InferParameter]:
    """Says how the images were served: the longest times, the largest batch, every profile and reason that occurred."""
    texts = {
        "profile": (result.profile.name for result in results),
        "selection_reason": (str(result.reason) for result in results),
    }
    numbers = {
        "queue_us": max(round(1e6 * result.timings.waiting) for result in results),
        "compute_us": max(round(1e6 * result.timings.inference) for result in results),
        "batch_size": max(result.batch_size for result in results),
    }
    return {
        **{name: pb.InferParameter(string_param=",".join(dict.fromkeys(values))) for name, values in texts.items()},
        **{name: pb.InferParameter(int64_param=number) for name, number in numbers.items()},
    }


def _count(results: Results) -> NDArray[Any]:
    return np.array([len(result.detections.scores) for result in results])


def _boxes(results: Results) -> NDArray[Any]:
    return _padded([result.detections.boxes for result in results], 0.0)


def _scores(results: Results) -> NDArray[Any]:
    return _padded([result.detections.scores for result in results], 0.0)


def _labels(results: Results) -> NDArray[Any]:
    return _padded([result.detections.labels for result in results], NO_LABEL)


def _label_names(results: Results) -> NDArray[Any]:
    return _padded([_names(result) for result in results], b"")


def _names(result: DetectionResult) -> NDArray[Any]:
    names = [name.encode() for name in result.profile.manifest.labels]
    return np.array(names, np.object_)[result.detections.labels]


def _image_size(results: Results) -> NDArray[Any]:
    return np.array([(result.image_size.width, result.image_size.height) for result in results])


def _padded(rows: Sequence[NDArray[Any]], filler: object) -> NDArray[Any]:
    """Returns an array with one row for each image, all as long as the longest."""
    padded = np.full((len(rows), max(map(len, rows)), *rows[0].shape[1:]), filler, rows[0].dtype)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


VALUES: Mapping[Tensor, Callable[[Results], NDArray[Any]]] = {
    COUNT: _count,
    BOXES: _boxes,
    SCORES: _scores,
    LABELS: _labels,
    LABEL_NAMES: _label_names,
    IMAGE_SIZE: _image_size,
}
"""The function that computes each output, for all images of a request; `tensors` has the shapes."""
