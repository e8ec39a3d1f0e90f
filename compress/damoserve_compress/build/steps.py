"""The steps from a network to a profile: prune, export, quantise, finish, validate.

Each step takes what the one before it gives, and keeps its own result in the work folder, by the hashes of its inputs.
"""

import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import hotcoco
import numpy as np
from numpy.typing import NDArray

from damoserve_compress.build.errors import BuildError
from damoserve_compress.build.pruning import prune_network
from damoserve_compress.build.trained_network import NetworkFiles, TrainedNetwork
from damoserve_compress.build.work_folder import HashedFile, WorkFolder
from damoserve_compress.datasets import Dataset, fingerprint
from damoserve_compress.datasets.subset import split_selection
from damoserve_compress.export import ROUNDING, Tolerance, check_batches, check_parity
from damoserve_compress.measure.evaluate import Detector, average_precision, ground_truth, predict
from damoserve_compress.measure.runtime import ONNX_RUNTIME, Runtime, onnx_detector
from damoserve_compress.measure.timing import instruction_set
from damoserve_compress.network import Network
from damoserve_compress.targets import TARGETS
from damoserve_compress.training.config import TrainConfig
from damoserve_profiles.files import replace_text
from damoserve_profiles.imaging import resize
from damoserve_profiles.manifest import MODEL_FILE, Thresholds
from damoserve_profiles.postprocess import Detections
from damoserve_profiles.recipe import Prune, Quantise, Recipe

QUANTISATION = "quantisation.json"
PARITY_IMAGES = 4

_DETECTIONS = "detections.npz"


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps for one source network and its data."""

    source: TrainedNetwork
    train_set: Dataset
    val_set: Dataset
    work: WorkFolder
    networks: NetworkFiles

    def prune(self, options: Prune, training: TrainConfig) -> TrainedNetwork:
        """Gives the cut network: made here, or, where the recipe names it, found beside the source network."""
        if options.network is not None:
            return self.find_cut_network(options.network)
        cut = prune_network(self.source, options, training, (self.train_set, self.val_set), self.work)
        return self.networks.read(cut.path, cut.sha256)

    def find_cut_network(self, name: str) -> TrainedNetwork:
        """Finds a network that was cut elsewhere. Raises CheckpointError and BuildError."""
        path = self.source.path.parent / name
        if not path.exists():
            raise BuildError(f"the cut network {path} is not there: copy it beside {self.source.name}")
        network = self.networks.read(path)
        if network.description != self.source.description:
            raise BuildError(f"{path} is not of the model, variant, labels and input of {self.source.name}")
        return network

    def export(self, network: TrainedNetwork, recipe: Recipe) -> HashedFile:
        """Gives the float32 graph of a network; it computes what the network computes, for batches too."""
        size, options, target = self.source.size, recipe.export, TARGETS[recipe.target]
        inputs = {
            "checkpoint": network.sha256,
            "target": recipe.target,
            "options": options.model_dump(),
            "size": [size.width, size.height],
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript")},
        }

        def make(folder: Path) -> None:
            adapted = target.adapt(network.network, options)
            path = folder / MODEL_FILE
            target.export(adapted, size, options, path)
            self._check(path, recipe, adapted, ROUNDING)

        return self.work.run("export", inputs, make).file(MODEL_FILE)

    def quantise(self, graph: HashedFile, recipe: Recipe, options: Quantise) -> HashedFile:
        """Gives the 8-bit form of a float graph; how it came to be is beside it."""
        inputs = {
            "graph": graph.sha256,
            "target": recipe.target,
            "options": options.model_dump(),
            "images": fingerprint(self.train_set),
            "input": self.source.input.model_dump(),
            "thresholds": self.source.network.structure.evaluation.model_dump(),
            "instruction_set": instruction_set(),
            "runtimes": sorted({ONNX_RUNTIME.version(), Runtime(options.engine).version()})
            if options.operators == "measure"
            else [ONNX_RUNTIME.version()],
        }

        def make(folder: Path) -> None:
            path = folder / MODEL_FILE
            images, target = self._calibration_images, TARGETS[recipe.target]
            report = target.quantise(graph.path, path, images, options, self._selection_ap)
            replace_text(folder / QUANTISATION, json.dumps(asdict(report), indent=1) + "\n")
            self._check(path, recipe)

        return self.work.run("quantise", inputs, make).file(MODEL_FILE)

    def finish(self, graph: HashedFile, network: TrainedNetwork, recipe: Recipe) -> HashedFile:
        """Gives what the target takes, made of a float graph or of its 8-bit form."""
        target = TARGETS[recipe.target]
        finish = target.finish
        if finish is None:
            return graph
        inputs = {"graph": graph.sha256, "target": recipe.target}

        def make(folder: Path) -> None:
            path = folder / MODEL_FILE
            finish(graph.path, path)
            if recipe.quantise is None:
                self._check(path, recipe, target.adapt(network.network, recipe.export), target.tolerance)

        return self.work.run("finish", inputs, make).file(MODEL_FILE)

    def detector(self, graph: Path, recipe: Recipe, runtime: Runtime) -> Detector:
        """A finished graph in `runtime`; on the processor, whatever it was made for."""
        return TARGETS[recipe.target].detector(graph, recipe.export, runtime)

    def validate(
        self, graph: HashedFile, recipe: Recipe, runtime: Runtime, thresholds: Thresholds | None = None
    ) -> list[Detections]:
        """Gives a finished graph's detections in the validation images, by default with the variant's thresholds."""
        thresholds = thresholds or self.source.network.structure.evaluation
        inputs = {
            "graph": graph.sha256,
            "export": recipe.export.model_dump(),
            "images": fingerprint(self.val_set),
            "input": self.source.input.model_dump(),
            "thresholds": thresholds.model_dump(),
            "runtime": asdict(runtime),
            "version": runtime.version(),
            "instruction_set": instruction_set(),
        }

        def make(folder: Path) -> None:
            detector = self.detector(graph.path, recipe, runtime)
            found = predict(detector, self.val_set, self.source.input, thresholds)
            np.savez(folder / _DETECTIONS, **_packed(found))  # type: ignore[arg-type]

        kept = self.work.run("validate", inputs, make).file(_DETECTIONS)
        with np.load(kept.path) as arrays:
            return _unpacked(arrays)

    def detect(self, detector: Detector, dataset: Dataset) -> list[Detections]:
        """Gives any detector's detections in a data set, with the thresholds that the variant is evaluated with."""
        return predict(detector, dataset, self.source.input, self.source.network.structure.evaluation)

    def _check(
        self, graph: Path, recipe: Recipe, network: Network | None = None, tolerance: Tolerance = ROUNDING
    ) -> None:
        """A graph against the network that it computes, if given, and its batches against single images."""
        samples = self._inputs(self.val_set)
        detector = TARGETS[recipe.target].detector(graph, recipe.export)
        if network is not None:
            check_parity(detector, network, samples, tolerance)
        check_batches(detector, samples)

    @cached_property
    def truth(self) -> hotcoco.COCO:
        """The annotated boxes of the validation images."""
        return ground_truth(self.val_set)

    @cached_property
    def _parts(self) -> tuple[Dataset, Dataset]:
        return split_selection(self.train_set)

    @cached_property
    def _selection_truth(self) -> hotcoco.COCO:
        return ground_truth(self._parts[1])

    def _selection_ap(self, graph: Path) -> float:
        return average_precision(self._selection_truth, self.detect(onnx_detector(graph), self._parts[1])).ap

    def _calibration_images(self) -> Iterator[NDArray[np.uint8]]:
        calibration, _ = self._parts
        return (self._input(calibration, index) for index in range(len(calibration)))

    def _inputs(self, dataset: Dataset) -> NDArray[np.uint8]:
        return np.stack([self._input(dataset, index) for index in range(min(PARITY_IMAGES, len(dataset)))])

    def _input(self, dataset: Dataset, index: int) -> NDArray[np.uint8]:
        return resize(dataset[index].image, self.source.size, self.source.input.resize)


def _packed(found: Sequence[Detections]) -> dict[str, NDArray[np.generic]]:
    return {
        "counts": np.array([len(image.scores) for image in found], np.int64),
        "boxes": np.concatenate([image.boxes for image in found]),
        "scores": np.concatenate([image.scores for image in found]),
        "labels": np.concatenate([image.labels for image in found]),
    }


def _unpacked(arrays: "np.lib.npyio.NpzFile") -> list[Detections]:
    ends = list(accumulate(arrays["counts"].tolist()))[:-1]
    parts = (np.split(arrays[name], ends) for name in ("boxes", "scores", "labels"))
    return [Detections(*image) for image in zip(*parts, strict=True)]
