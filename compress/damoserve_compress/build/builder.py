"""The builder makes profiles in a repository from a checkpoint and recipes: prune, export, quantise, measure, validate.

All recipes are made first and then timed together; nothing is written before every one has passed its validation. What
stops a build: `damoserve_compress.build.errors`.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from damoserve_compress.build.agreement import add_agreement, serving_runtime
from damoserve_compress.build.errors import BuildError, RecipeFailed
from damoserve_compress.build.golden import add_golden
from damoserve_compress.build.pruning import fine_tuning_config
from damoserve_compress.build.steps import Steps
from damoserve_compress.build.trained_network import NetworkFiles, TrainedNetwork, check_labels
from damoserve_compress.build.work_folder import HashedFile, WorkFolder
from damoserve_compress.datasets import Dataset
from damoserve_compress.datasets.cache import CachedDataset
from damoserve_compress.measure.bootstrap import Difference, compare
from damoserve_compress.measure.complexity import complexity
from damoserve_compress.measure.evaluate import Metrics, average_precision, torch_detector
from damoserve_compress.measure.runtime import ONNX_RUNTIME, Runtime, RuntimeMissing, check_runtime
from damoserve_compress.measure.timing import choose_engine, interleave, summarise
from damoserve_compress.network import fuse
from damoserve_compress.training.config import TrainConfig
from damoserve_profiles.files import replace_file
from damoserve_profiles.manifest import (
    MANIFEST_FILE,
    MODEL_FILE,
    Accuracy,
    AccuracyDifference,
    DataSource,
    FileRecord,
    Latency,
    Manifest,
    Source,
    Thresholds,
)
from damoserve_profiles.postprocess import Detections
from damoserve_profiles.recipe import Recipe
from damoserve_profiles.repository import ProfileFolder, Repository
from damoserve_profiles.runtimes import EngineName

THREADS = 1


@dataclass(frozen=True)
class BuildConfig:
    """Settings of a build: its inputs, its folders, and how it measures."""

    checkpoint: Path
    repository: Path
    work: Path
    """Folder for intermediate results; what is there of the same inputs is not made again."""
    data_name: str
    """The name of the validation images in manifests."""
    thresholds: Thresholds
    """The thresholds that the profiles are served with by default; validation has its own."""
    version: int = 1
    training: TrainConfig = field(default_factory=TrainConfig)
    """The settings for fine-tuning pruned networks, but for the epochs and the learning rate, which recipes have."""
    rounds: int = 100
    """Timed runs of every profile."""
    engines: tuple[EngineName, ...] = ("onnxruntime",)
    """The engines that every profile is timed in; its manifest names the fastest."""
    license: str | None = None
    """The model's licence, for the manifests."""
    data: tuple[DataSource, ...] = ()
    """The data sets that the model was trained on, for the manifests."""


@dataclass(frozen=True)
class _Unmeasured:
    """A profile that is neither timed nor validated: its recipe, and the network and graph that the steps gave."""

    recipe: Recipe
    network: TrainedNetwork
    graph: HashedFile


@dataclass(frozen=True)
class _EngineTimes:
    """The runtime to serve a profile in, and the latency in each engine that it was timed in."""

    runtime: Runtime
    latencies: dict[EngineName, Latency]


class Builder:
    """Builds profiles of one checkpoint. `train_set` calibrates and fine-tunes; `val_set` only measures."""

    def __init__(
        self, config: BuildConfig, train_set: Dataset, val_set: Dataset, report: Callable[[str], None] = print
    ) -> None:
        self.config = config
        networks = NetworkFiles()
        source = networks.read(config.checkpoint)
        check_labels(source, train_set, val_set)
        # Every profile is calibrated and validated on the same images: they are decoded once.
        data = CachedDataset(train_set), CachedDataset(val_set)
        self.steps = Steps(source, *data, WorkFolder(config.work, report), networks)
        self._source = source
        self._report = report

    def build(self, recipes: Sequence[Recipe]) -> list[Manifest]:
        """Builds, measures and validates all recipes, then writes them. Raises BuildError, and what the steps raise.

        All profiles are timed together, interleaved, so that their latencies can be compared.
        """
        if not recipes:
            raise BuildError("there is no recipe to build")
        names = [recipe.name for recipe in recipes]
        if len(set(names)) < len(names):
            raise BuildError(f"two recipes have the same name: {', '.join(names)}")
        for recipe in recipes:
            self._check_prerequisites(recipe)
        folders = [self._folder(recipe) for recipe in recipes]
        made = [self._make(recipe) for recipe in recipes]
        timed = self._time(made)
        manifests = [self._manifest(*profile) for profile in zip(made, timed, strict=True)]
        for profile in zip(folders, made, timed, manifests, strict=True):
            self._write(*profile)
        self._add_agreements()
        return [folder.read_manifest() for folder in folders]

    @cached_property
    def source_detections(self) -> list[Detections]:
        """The detections of the source network on the validation set: all profiles are compared with them."""
        self._report("validating the source network")
        return self.steps.detect(torch_detector(fuse(self._source.network)), self.steps.val_set)

    def _check_prerequisites(self, recipe: Recipe) -> None:
        """Checks what would otherwise be found missing after hours of training."""
        runtimes = self._runtimes(recipe)
        if recipe.quantise and recipe.quantise.operators == "measure":
            runtimes.append(Runtime(recipe.quantise.engine))
        try:
            for runtime in runtimes:
                check_runtime(runtime)
        except RuntimeMissing as error:
            raise BuildError(f"{recipe.name}: {error}") from error
        except ValueError as error:
            raise RecipeFailed(f"{recipe.name}: {error}") from error
        prune = recipe.prune
        if prune and prune.network:
            self.steps.find_cut_network(prune.network)
        elif prune:
            fine_tuning_config(self._source.description, prune, self.config.training)

    def _make(self, recipe: Recipe) -> _Unmeasured:
        self._report(f"{recipe.name}:")
        network = self._source
        if recipe.prune:
            network = self.steps.prune(recipe.prune, self.config.training)
        graph = self.steps.export(network, recipe)
        if recipe.quantise:
            graph = self.steps.quantise(graph, recipe, recipe.quantise)
        return _Unmeasured(recipe, network, self.steps.finish(graph, network, recipe))

    def _time(self, made: Sequence[_Unmeasured]) -> list[_EngineTimes]:
        runtimes = [self._runtimes(profile.recipe) for profile in made]
        size = self._source.size
        image = np.zeros((1, size.height, size.width, 3), np.uint8)
        runs = [
            partial(self.steps.detector(profile.graph.path, profile.recipe, runtime), image)
            for profile, tried in zip(made, runtimes, strict=True)
            for runtime in tried
        ]
        self._report(f"timing {len(runs)} graphs, {self.config.rounds} interleaved runs of each")
        columns = iter(interleave(runs, self.config.rounds).T)
        return [
            self._engine_times(profile.recipe, {runtime: next(columns) for runtime in tried})
            for profile, tried in zip(made, runtimes, strict=True)
        ]

    def _runtimes(self, recipe: Recipe) -> list[Runtime]:
        if recipe.target != "cpu":
            return [ONNX_RUNTIME]
        if recipe.precision is not None:
            return [Runtime("openvino", recipe.precision)]
        return [Runtime(engine) for engine in self.config.engines]

    def _engine_times(self, recipe: Recipe, times: dict[Runtime, NDArray[np.float64]]) -> _EngineTimes:
        latencies = {runtime: summarise(column, THREADS, runtime) for runtime, column in times.items()}
        if len(times) == 1:
            [(runtime, latency)] = latencies.items()
            if recipe.target != "cpu":
                latency = latency.model_copy(update={"runtime": f"{latency.runtime}, in place of the {recipe.target}"})
            return _EngineTimes(runtime, {runtime.engine: latency})
        fastest = choose_engine({runtime.engine: column for runtime, column in times.items()})
        chosen = next(runtime for runtime in times if runtime.engine == fastest)
        return _EngineTimes(chosen, {runtime.engine: latency for runtime, latency in latencies.items()})

    def _validate(self, made: _Unmeasured, runtime: Runtime) -> tuple[Metrics, Difference]:
        source, recipe = self.source_detections, made.recipe
        detections = self.steps.validate(made.graph, recipe, runtime)
        metrics = average_precision(self.steps.truth, detections)
        difference = compare(self.steps.truth, source, detections)
        self._report(f"{recipe.name}: AP {100 * metrics.ap:.2f}, {difference.ap} against the source network")
        if -difference.ap.value > recipe.max_ap_drop:
            raise RecipeFailed(
                f"{recipe.name} loses {-difference.ap.value:.4f} AP; its recipe allows {recipe.max_ap_drop}"
            )
        return metrics, difference

    def _folder(self, recipe: Recipe) -> ProfileFolder:
        repository = Repository(self.config.repository)
        folder = repository.folder(self._source.description.model, self.config.version, recipe.name)
        if not (folder.path / MANIFEST_FILE).exists():  # none yet, or a build was killed while it wrote this
            return folder
        there = folder.read_manifest()
        if there.source.sha256 != self._source.sha256:
            raise BuildError(f"{folder.path} was built from another checkpoint: choose another version")
        if there.recipe.target != recipe.target:
            raise BuildError(f"{folder.path} is for the target {there.recipe.target}: name the recipe otherwise")
        return folder

    def _manifest(self, made: _Unmeasured, timed: _EngineTimes) -> Manifest:
        description, recipe = self._source.description, made.recipe
        metrics, difference = self._validate(made, timed.runtime)
        parameters, macs = complexity(made.network.network, self._source.size)
        image = np.zeros((1, description.height, description.width, 3), np.uint8)
        scores, _ = self.steps.detector(made.graph.path, recipe, timed.runtime)(image)
        # What a build cut itself is told by its recipe.
        cut_sha256 = made.network.sha256 if recipe.prune and recipe.prune.network else None
        return Manifest(
            model=description.model,
            version=self.config.version,
            profile=recipe.name,
            variant=description.variant,
            labels=description.labels,
            input=description.input,
            candidates=scores.shape[1],
            thresholds=self.config.thresholds,
            parameters=parameters,
            macs=macs,
            accuracy=self._accuracy(metrics, difference),
            engine=timed.runtime.engine,
            precision=timed.runtime.precision,
            latency=timed.latencies[timed.runtime.engine],
            latencies=timed.latencies if len(timed.latencies) > 1 else {},
            recipe=recipe,
            source=Source(checkpoint=self._source.name, sha256=self._source.sha256, cut_sha256=cut_sha256),
            license=self.config.license,
            data=self.config.data,
            files={MODEL_FILE: FileRecord(bytes=made.graph.path.stat().st_size, sha256=made.graph.sha256)},
        )

    def _write(self, folder: ProfileFolder, made: _Unmeasured, timed: _EngineTimes, manifest: Manifest) -> None:
        folder.path.mkdir(parents=True, exist_ok=True)
        replace_file(folder.model_path, partial(shutil.copyfile, made.graph.path))
        manifest = add_golden(folder, manifest, self.steps.detector(made.graph.path, made.recipe, timed.runtime))
        folder.write(manifest)

    def _add_agreements(self) -> None:
        """Writes agreements into all manifests of the version: a new profile may be the reference of older ones."""

        def detect(folder: ProfileFolder, manifest: Manifest, thresholds: Thresholds) -> list[Detections]:
            graph = HashedFile(folder.model_path, manifest.files[MODEL_FILE].sha256)  # verified by `add_agreement`
            return self.steps.validate(graph, manifest.recipe, serving_runtime(manifest), thresholds)

        model, version = self._source.description.model, self.config.version
        folders = Repository(self.config.repository).profiles(model, version)
        add_agreement(folders, self.config.data_name, detect, self._report)

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
                reference=self._source.name,
                ap=round(difference.ap.value, 5),
                lower=round(difference.ap.lower, 5),
                upper=round(difference.ap.upper, 5),
                resamples=difference.resamples,
            ),
        )
