"""What is done to a network on its way to a profile, each step kept in the work folder by the hash of its inputs."""

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

from damoserve_compress.benchmark import instruction_set
from damoserve_compress.datasets import Dataset, fingerprint
from damoserve_compress.datasets.subset import split_selection
from damoserve_compress.evaluate import Detector, average_precision, ground_truth, predict
from damoserve_compress.export import ROUNDING, Tolerance, check_batches, check_parity
from damoserve_compress.network import Network
from damoserve_compress.network.checkpoint import load_checkpoint
from damoserve_compress.prune.stage import prune_stage
from damoserve_compress.session import ONNX_RUNTIME, Runtime, onnx_detector
from damoserve_compress.source import BuildError, SourceNetwork, read_source
from damoserve_compress.stages import Stages
from damoserve_compress.targets import TARGETS
from damoserve_compress.training.config import TrainConfig
from damoserve_profiles.files import replace_text
from damoserve_profiles.imaging import resize
from damoserve_profiles.manifest import MODEL_FILE, Thresholds
from damoserve_profiles.postprocess import Detections
from damoserve_profiles.recipe import Prune, Quantise, Recipe
from damoserve_profiles.repository import describe_file

QUANTISATION = "quantisation.json"
PARITY_IMAGES = 4

_DETECTIONS = "detections.npz"


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps for one source network and its data."""

    source: SourceNetwork
    train_set: Dataset
    val_set: Dataset
    stages: Stages

    def prune(self, checkpoint: Path, options: Prune, training: TrainConfig) -> Path:
        """The checkpoint of the cut network: made here, or, where the recipe names it, found beside `checkpoint`."""
        if options.network is None:
            return prune_stage(self.source, options, training, (self.train_set, self.val_set), self.stages)
        return self.cut_before(checkpoint, options.network)

    def cut_before(self, checkpoint: Path, name: str) -> Path:
        """The checkpoint of a network that was cut elsewhere. Raises CheckpointError and BuildError."""
        path = checkpoint.parent / name
        if not path.exists():
            raise BuildError(f"the cut network {path} is not there: copy it beside {checkpoint.name}")
        if read_source(path).description != self.source.description:
            raise BuildError(f"{path} is not of the model, variant, labels and input of {checkpoint.name}")
        return path

    def export(self, checkpoint: Path, recipe: Recipe) -> Path:
        """The float32 graph of a checkpoint; it computes what the network computes, for batches too."""
        size, options, target = self.source.size, recipe.export, TARGETS[recipe.target]
        inputs = {
            "checkpoint": _sha256(checkpoint),
            "target": recipe.target,
            "options": options.model_dump(),
            "size": [size.width, size.height],
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript")},
        }

        def make(folder: Path) -> None:
            network = target.adapt(load_checkpoint(checkpoint)[0], options)
            path = folder / MODEL_FILE
            target.export(network, size, options, path)
            self._check(path, recipe, network, ROUNDING)

        return self.stages.run("export", inputs, make) / MODEL_FILE

    def quantise(self, graph: Path, recipe: Recipe, options: Quantise) -> Path:
        """The 8-bit form of a float graph; how it came to be is beside it."""
        inputs = {
            "graph": _sha256(graph),
            "target": recipe.target,
            "options": options.model_dump(),
            "images": self._train_digest,
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
            report = target.quantise(graph, path, images, options, self._selection_ap)
            replace_text(folder / QUANTISATION, json.dumps(asdict(report), indent=1) + "\n")
            self._check(path, recipe)

        return self.stages.run("quantise", inputs, make) / MODEL_FILE

    def finish(self, graph: Path, checkpoint: Path, recipe: Recipe) -> Path:
        """What the target is given: of a float graph or of its 8-bit form."""
        target = TARGETS[recipe.target]
        finish = target.finish
        if finish is None:
            return graph
        inputs = {"graph": _sha256(graph), "target": recipe.target}

        def make(folder: Path) -> None:
            path = folder / MODEL_FILE
            finish(graph, path)
            if recipe.quantise is None:
                network = target.adapt(load_checkpoint(checkpoint)[0], recipe.export)
                self._check(path, recipe, network, target.tolerance)

        return self.stages.run("finish", inputs, make) / MODEL_FILE

    def detector(self, graph: Path, recipe: Recipe, runtime: Runtime) -> Detector:
        """A finished graph in `runtime`; on the processor, whatever it was made for."""
        return TARGETS[recipe.target].detector(graph, recipe.export, runtime)

    def detections(
        self, graph: Path, recipe: Recipe, runtime: Runtime, thresholds: Thresholds | None = None
    ) -> list[Detections]:
        """What a finished graph finds in the validation images; by default as the variant is evaluated."""
        thresholds = thresholds or self.source.network.structure.evaluation
        inputs = {
            "graph": _sha256(graph),
            "export": recipe.export.model_dump(),
            "images": self._val_digest,
            "input": self.source.input.model_dump(),
            "thresholds": thresholds.model_dump(),
            "runtime": asdict(runtime),
            "version": runtime.version(),
            "instruction_set": instruction_set(),
        }

        def make(folder: Path) -> None:
            detector = self.detector(graph, recipe, runtime)
            found = predict(detector, self.val_set, self.source.input, thresholds)
            np.savez(folder / _DETECTIONS, **_packed(found))  # type: ignore[arg-type]

        folder = self.stages.run("validate", inputs, make)
        with np.load(folder / _DETECTIONS) as arrays:
            return _unpacked(arrays)

    def detect(self, detector: Detector, dataset: Dataset) -> list[Detections]:
        """With the thresholds that the variant is evaluated with."""
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
        """Of the validation images."""
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

    @cached_property
    def _train_digest(self) -> str:
        return fingerprint(self.train_set)

    @cached_property
    def _val_digest(self) -> str:
        return fingerprint(self.val_set)


def _sha256(path: Path) -> str:
    return describe_file(path).sha256


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
