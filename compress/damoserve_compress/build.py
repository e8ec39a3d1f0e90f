"""From a trained checkpoint and recipes to profiles in a repository: prune, export, quantise, validate, measure.

BuildError   the data do not suit the checkpoint, a profile does not meet its recipe, or it would replace one of another
             checkpoint; nothing is written
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import hotcoco
import numpy as np
from numpy.typing import NDArray

from damoserve_compress.benchmark import summarise, time_models
from damoserve_compress.bootstrap import Difference, compare
from damoserve_compress.complexity import complexity
from damoserve_compress.datasets import Dataset
from damoserve_compress.datasets.cache import CachedDataset
from damoserve_compress.datasets.subset import split_selection
from damoserve_compress.evaluate import Detector, Metrics, average_precision, ground_truth, predict, torch_detector
from damoserve_compress.export import check_batches, check_parity, export_onnx
from damoserve_compress.network import Network, fuse
from damoserve_compress.network.checkpoint import load_checkpoint
from damoserve_compress.prune.stage import prune_stage
from damoserve_compress.quantise import quantise_onnx
from damoserve_compress.session import onnx_detector
from damoserve_compress.source import BuildError, read_source
from damoserve_compress.stages import Stages
from damoserve_compress.training.config import TrainConfig
from damoserve_profiles.files import replace_file
from damoserve_profiles.imaging import resize
from damoserve_profiles.manifest import MODEL_FILE, Accuracy, AccuracyDifference, Manifest, Source, Thresholds
from damoserve_profiles.postprocess import Detections
from damoserve_profiles.recipe import Prune, Recipe
from damoserve_profiles.repository import ProfileFolder, Repository, describe_file

PARITY_IMAGES = 4
THREADS = 1


@dataclass(frozen=True)
class BuildConfig:
    """Where from, where to, and how to measure."""

    checkpoint: Path
    repository: Path
    work: Path
    """Folder for intermediate results; fine-tuning resumes from it."""
    data_name: str
    """What the manifests call the validation images."""
    thresholds: Thresholds
    """Those that the profiles are served with by default; validation has its own."""
    version: int = 1
    training: TrainConfig = field(default_factory=TrainConfig)
    """How pruned networks are fine-tuned; the profile's recipe has the epochs and the learning rate."""
    rounds: int = 100
    """Timed runs of every profile."""


@dataclass(frozen=True)
class _Built:
    """A profile that met its recipe, not yet timed."""

    recipe: Recipe
    path: Path
    network: Network
    metrics: Metrics
    difference: Difference
    candidates: int


class Builder:
    """Builds profiles of one checkpoint. `train_set` calibrates and fine-tunes; `val_set` only measures."""

    def __init__(
        self,
        config: BuildConfig,
        train_set: Dataset,
        val_set: Dataset,
        report: Callable[[str], None] = print,
    ) -> None:
        self.config = config
        self._source = read_source(config.checkpoint, train_set, val_set)
        self.network, self.description = self._source.network, self._source.description
        self.input, self.size = self._source.input, self._source.size
        # Every profile is calibrated and validated on the same images: they are decoded once.
        self._train_set = CachedDataset(train_set)
        self._val_set = CachedDataset(val_set)
        self._calibration, self._selection = split_selection(self._train_set)
        self._stages = Stages(config.work, report)
        self._report = report

    def build(self, recipes: Sequence[Recipe]) -> list[Manifest]:
        """Builds, validates and measures all recipes, then writes them. Raises BuildError.

        All profiles are timed together, interleaved, so that their latencies can be compared.
        """
        if not recipes:
            raise BuildError("there is no recipe to build")
        folders = [self._folder(recipe) for recipe in recipes]
        built = [self._build(recipe) for recipe in recipes]
        self._report(f"timing {len(built)} profiles, {self.config.rounds} interleaved runs of each")
        times = time_models([profile.path for profile in built], self.size, self.config.rounds, THREADS)
        manifests = [self._manifest(profile, times[:, index]) for index, profile in enumerate(built)]
        for folder, profile, manifest in zip(folders, built, manifests, strict=True):
            folder.path.mkdir(parents=True, exist_ok=True)
            replace_file(folder.model_path, partial(shutil.copyfile, profile.path))
            folder.write(manifest)
        return manifests

    @cached_property
    def source_detections(self) -> list[Detections]:
        """What the network finds on the validation set before anything is done to it."""
        self._report("validating the source network")
        return self._detect(torch_detector(fuse(self.network)))

    @cached_property
    def _truth(self) -> hotcoco.COCO:
        return ground_truth(self._val_set)

    def _detect(self, detector: Detector) -> list[Detections]:
        return predict(detector, self._val_set, self.input, self.network.structure.evaluation)

    def _build(self, recipe: Recipe) -> _Built:
        network = self._pruned(recipe.prune) if recipe.prune else self.network
        folder = self.config.work / recipe.name
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / MODEL_FILE
        self._report(f"{recipe.name}: exporting")
        export_onnx(network, self.size, recipe.export, path)
        samples = self._inputs(self._val_set, PARITY_IMAGES)
        check_parity(onnx_detector(path), network, samples)
        if recipe.quantise:
            self._report(f"{recipe.name}: quantising")
            images = (self._input(self._train_set, index) for index in range(len(self._train_set)))
            quantise_onnx(path, path, images, recipe.quantise)
        detector = onnx_detector(path)
        check_batches(detector, samples)
        metrics, difference = self._validate(recipe, detector)
        return _Built(recipe, path, network, metrics, difference, candidates=detector(samples)[0].shape[1])

    def _pruned(self, options: Prune) -> Network:
        data = self._train_set, self._val_set
        path = prune_stage(self._source, options, self.config.training, data, self._stages)
        return load_checkpoint(path)[0]

    def _validate(self, recipe: Recipe, detector: Detector) -> tuple[Metrics, Difference]:
        source = self.source_detections
        self._report(f"{recipe.name}: validating")
        detections = self._detect(detector)
        metrics = average_precision(self._truth, detections)
        difference = compare(self._truth, source, detections)
        self._report(f"{recipe.name}: AP {100 * metrics.ap:.2f}, {difference.ap} against the source network")
        if -difference.ap.value > recipe.max_ap_drop:
            raise BuildError(
                f"{recipe.name} loses {-difference.ap.value:.4f} AP; its recipe allows {recipe.max_ap_drop}"
            )
        return metrics, difference

    def _input(self, dataset: Dataset, index: int) -> NDArray[np.uint8]:
        return resize(dataset[index].image, self.size, self.input.resize)

    def _inputs(self, dataset: Dataset, count: int) -> NDArray[np.uint8]:
        return np.stack([self._input(dataset, index) for index in range(min(count, len(dataset)))])

    def _folder(self, recipe: Recipe) -> ProfileFolder:
        repository = Repository(self.config.repository)
        folder = repository.folder(self.description.model, self.config.version, recipe.name)
        if folder.path.is_dir() and folder.read_manifest().source.sha256 != self._source.sha256:
            raise BuildError(f"{folder.path} was built from another checkpoint: choose another version")
        return folder

    def _manifest(self, built: _Built, milliseconds: NDArray[np.float64]) -> Manifest:
        recipe = built.recipe
        parameters, macs = complexity(built.network, self.size)
        return Manifest(
            model=self.description.model,
            version=self.config.version,
            profile=recipe.name,
            variant=self.description.variant,
            labels=self.description.labels,
            input=self.input,
            candidates=built.candidates,
            thresholds=self.config.thresholds,
            parameters=parameters,
            macs=macs,
            accuracy=self._accuracy(built.metrics, built.difference),
            latency=summarise(milliseconds, THREADS),
            recipe=recipe,
            source=Source(checkpoint=self.config.checkpoint.name, sha256=self._source.sha256),
            files={MODEL_FILE: describe_file(built.path)},
        )

    def _accuracy(self, metrics: Metrics, difference: Difference) -> Accuracy:
        return Accuracy(
            dataset=self.config.data_name,
            images=metrics.images,
            ap=round(metrics.ap, 5),
            ap50=round(metrics.ap50, 5),
            ap75=round(metrics.ap75, 5),
            per_class={name: round(value, 5) for name, value in metrics.per_class.items()},
            per_size={name: round(value, 5) for name, value in metrics.per_size.items()},
            difference=AccuracyDifference(
                reference=self.config.checkpoint.name,
                ap=round(difference.ap.value, 5),
                lower=round(difference.ap.lower, 5),
                upper=round(difference.ap.upper, 5),
                resamples=difference.resamples,
            ),
        )
