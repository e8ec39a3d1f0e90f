"""Observation of a graph: the values of its tensors while images pass through it, one image at a time."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from damoserve_compress.measure.runtime import open_session
from damoserve_compress.quantise.errors import QuantisationError
from damoserve_compress.quantise.graph import Graph
from damoserve_compress.quantise.histogram import Histogram

Images = Callable[[], Iterable[NDArray[np.uint8]]]
"""Calibration images as the network gets them, uint8 `[H, W, 3]`, the same ones at every call."""


@dataclass(frozen=True)
class Calibration:
    """The images that the ranges were taken from."""

    images: int
    sha256: str
    """Over the pixels of all of them, in their order."""


def observe(
    model: ModelProto, tensors: Sequence[str], images: Iterable[NDArray[np.uint8]]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """The values of `tensors` for one image after the other, each `[1, ...]`.

    In memory are those of one image, as long as the caller keeps no more.
    """
    watched = ModelProto()
    watched.CopyFrom(model)
    there = {output.name for output in model.graph.output}
    for name in tensors:
        if name not in there:
            watched.graph.output.append(onnx.ValueInfoProto(name=name))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "watched.onnx"
        onnx.save(watched, path)
        session = open_session(path)
    for image in images:
        yield dict(zip(tensors, session.run(list(tensors), {"images": image[None]}), strict=True))


def collect(graph: Graph, images: Images, count: int) -> tuple[dict[str, Histogram], Calibration]:
    """The distributions of all activations with a range of their own over at most `count` images.

    Raises QuantisationError where there is no image, or a value is not finite.
    """
    names = sorted(set(graph.sources.values()) - {graph.cast.output[0]})
    histograms = {name: Histogram() for name in names}
    digest, seen = hashlib.sha256(), 0

    def counted() -> Iterator[NDArray[np.uint8]]:
        nonlocal seen
        for image in islice(images(), count):
            digest.update(image.tobytes())
            seen += 1
            yield image

    for values in observe(graph.model, names, counted()):
        for name in names:
            try:
                histograms[name].add(values[name])
            except ValueError as error:
                raise QuantisationError(f"{name} is not finite for calibration image {seen}") from error
    if not seen:
        raise QuantisationError("there are no calibration images: ranges cannot be taken from none")
    return histograms, Calibration(seen, digest.hexdigest())
