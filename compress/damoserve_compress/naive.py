"""Naive compression, by the usual settings: the baselines that the profiles are compared with.

* ONNX Runtime's `quantize_static` with its defaults: signed activations, one scale for each weight tensor.
* A fifth of the channels of every group cut by L1 norm, and nothing done about it afterwards.
* NNCF's post-training quantisation with its defaults, run in each engine.

All calibrate on the training images, as the profiles do.
"""

import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, quantize_static

from damoserve_compress.build.trained_network import TrainedNetwork
from damoserve_compress.datasets import Dataset
from damoserve_compress.export import export_onnx
from damoserve_compress.measure.bootstrap import Difference, compare
from damoserve_compress.measure.evaluate import Metrics, average_precision, ground_truth, predict
from damoserve_compress.measure.runtime import ONNX_RUNTIME, Runtime, installed_engines, open_detector
from damoserve_compress.measure.timing import Ratio, speed_up, time_models
from damoserve_compress.network import Network
from damoserve_compress.prune import cut, find_groups, uniform
from damoserve_profiles.imaging import resize
from damoserve_profiles.manifest import InputSpec
from damoserve_profiles.recipe import Export
from damoserve_profiles.runtimes import EngineName, silence_openvino

RATIO: Final = 0.2
ROUND_TO: Final = 8
"""Widths that the kernels like, as the recipes have them: the cut is not made to look slower than it has to be."""


@dataclass(frozen=True)
class NaiveRow:
    """The results of a setting in an engine. The first row of a comparison is the float graph itself."""

    name: str
    engine: EngineName
    metrics: Metrics
    difference: Difference | None
    """The difference from the float graph; None for itself."""
    milliseconds: float
    """Median of one image on one thread, from the image tensor to the candidate boxes."""
    speed: Ratio
    """The speed-up over the float graph in ONNX Runtime."""
    bytes: int


@dataclass(frozen=True)
class NaiveReport:
    """The results of all settings, and the checkpoint that they were tried on."""

    checkpoint: str
    """The name of the checkpoint's file."""
    sha256: str
    rows: tuple[NaiveRow, ...]


def measure_naive(
    source: TrainedNetwork,
    data: tuple[Dataset, Dataset],
    work: Path,
    rounds: int = 100,
    report: Callable[[str], None] = print,
) -> NaiveReport:
    """Makes, validates and times each setting for a network; `data` are the training and the validation images.

    The graphs are written to `work`, which must exist. NNCF's rows need the extra `nncf`.
    """
    train_set, val_set = data
    made = _graphs(source.network, source.input, train_set, work, report)
    truth = ground_truth(val_set)
    found = []
    for name, path, runtime in made:
        report(f"validating {name}, {runtime.engine}")
        detector = open_detector(path, runtime)
        found.append(predict(detector, val_set, source.input, source.network.structure.evaluation))
    report(f"timing, {rounds} interleaved runs of each")
    times = time_models([(path, runtime) for _, path, runtime in made], source.size, rounds)
    rows = (
        NaiveRow(
            name=name,
            engine=runtime.engine,
            metrics=average_precision(truth, detections),
            difference=compare(truth, found[0], detections) if index else None,
            milliseconds=round(float(np.median(times[:, index])), 3),
            speed=speed_up(times, index),
            bytes=path.stat().st_size,
        )
        for index, ((name, path, runtime), detections) in enumerate(zip(made, found, strict=True))
    )
    return NaiveReport(source.name, source.sha256, tuple(rows))


def _graphs(
    network: Network, spec: InputSpec, train_set: Dataset, work: Path, report: Callable[[str], None]
) -> list[tuple[str, Path, Runtime]]:
    images = _Images(train_set, spec)
    float_graph, static, pruned, nncf = (work / f"{name}.onnx" for name in ("float", "static", "pruned", "nncf"))
    export_onnx(network, spec.size, Export(), float_graph)
    report("quantising with ONNX Runtime's defaults")
    quantise_by_default(float_graph, static, images)
    report(f"cutting {RATIO:.0%} of the channels")
    export_onnx(prune_without_recovery(network), spec.size, Export(), pruned)
    made = [
        ("float", float_graph, ONNX_RUNTIME),
        ("quantize_static, defaults", static, ONNX_RUNTIME),
        (f"L1 {RATIO:.0%}, no recovery", pruned, ONNX_RUNTIME),
    ]
    if importlib.util.find_spec("nncf") is None:
        report("NNCF is not installed: no rows of it; install damoserve[nncf]")
        return made
    report("quantising with NNCF")
    quantise_by_nncf(float_graph, nncf, images)
    return made + [("NNCF quantize", nncf, Runtime(engine)) for engine in installed_engines()]


class _Images:
    """A data set as the network gets it, as often as it is asked for."""

    def __init__(self, dataset: Dataset, spec: InputSpec) -> None:
        self._dataset = dataset
        self._spec = spec

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for index in range(len(self)):
            yield resize(self._dataset[index].image, self._spec.size, self._spec.resize)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Iterable[NDArray[np.uint8]]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        image = next(self._images, None)
        return None if image is None else _feed(image)


def _feed(image: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    return {"images": image[None]}


def quantise_by_default(source: Path, target: Path, images: Iterable[NDArray[np.uint8]]) -> None:
    """ONNX Runtime's static quantisation of a graph, every option at its default; `images` are uint8 `[H, W, 3]`."""
    with _quiet(logging.getLogger()):  # it recommends a preparation that finds nothing to do in these graphs
        quantize_static(source, target, _Reader(images))


def prune_without_recovery(network: Network) -> Network:
    """A fifth of the channels of every group fewer, those of the least L1 norm; what is left stays as it was."""
    groups = find_groups(network, "l1")
    return cut(network, groups, uniform(groups, RATIO, ROUND_TO)).eval()


def quantise_by_nncf(source: Path, target: Path, images: Iterable[NDArray[np.uint8]]) -> None:
    """NNCF's post-training quantisation of a graph, every option at its default; needs the extra `nncf`.

    `images` are uint8 `[H, W, 3]`; they are gone through several times.
    """
    silence_openvino()
    import nncf

    with _quiet(logging.getLogger("nncf")):
        onnx.save(nncf.quantize(onnx.load(source), nncf.Dataset(images, _feed)), target)


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
