"""The profiles of a model, measured anew: times interleaved, and accuracy where there are images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from damoserve_compress.datasets import Dataset
from damoserve_compress.measure.bootstrap import Difference, compare
from damoserve_compress.measure.evaluate import COCO_THRESHOLDS, average_precision, ground_truth, predict
from damoserve_compress.measure.runtime import Runtime, installed_engines, open_detector
from damoserve_compress.measure.timing import Ratio, speed_up, summarise, time_models
from damoserve_compress.network import VARIANTS
from damoserve_compress.report.errors import ReportError
from damoserve_profiles.manifest import AccuracyDifference, Latency, Manifest, Thresholds
from damoserve_profiles.postprocess import Detections
from damoserve_profiles.repository import Repository
from damoserve_profiles.runtimes import EngineName

THREADS = 1


@dataclass(frozen=True)
class Profile:
    """A built profile, its files checked."""

    manifest: Manifest
    path: Path

    @property
    def name(self) -> str:
        return self.manifest.profile


@dataclass(frozen=True)
class EngineTiming:
    """The time of a profile in an engine."""

    latency: Latency
    speed: Ratio
    """The speed-up over the first profile in ONNX Runtime."""


@dataclass(frozen=True)
class MeasuredProfile:
    """A profile, and what was measured of it here."""

    profile: Profile
    timings: dict[EngineName, EngineTiming]
    ap: float
    """Average precision, 0..1."""
    difference: AccuracyDifference | None
    """The difference from the reference; None for the reference itself, and where it was never measured."""

    @property
    def manifest(self) -> Manifest:
        return self.profile.manifest

    @property
    def name(self) -> str:
        return self.profile.name

    @property
    def engine(self) -> EngineName:
        """The preferred engine, or where it is not installed, ONNX Runtime."""
        return self.manifest.engine if self.manifest.engine in self.timings else "onnxruntime"

    @property
    def timing(self) -> EngineTiming:
        return self.timings[self.engine]

    @property
    def runtime(self) -> Runtime:
        return Runtime(self.engine, self.manifest.precision)


def read_profiles(root: Path, model: str | None, reference: str) -> tuple[list[Profile], list[Manifest]]:
    """The profiles of the newest version that run on processors, `reference` first, and the manifests of the others.

    The model may be None where the repository has only one. Raises RepositoryError, and ReportError where what is asked
    for is not there.
    """
    repository = Repository(root)
    models = repository.models()
    if not models or (model is None and len(models) > 1):
        raise ReportError(f"{root} holds {', '.join(models) or 'no model'}: say which with --model")
    name = model or models[0]
    if name not in models:
        raise ReportError(f"{root} has no model {name}, but {', '.join(models)}")
    folders = repository.profiles(name, repository.versions(name)[-1])
    found = [Profile(folder.verify(), folder.model_path) for folder in folders]
    profiles = [profile for profile in found if profile.manifest.recipe.target == "cpu"]
    # All speeds are against the reference in ONNX Runtime, the one engine that everybody has.
    if reference not in [profile.name for profile in profiles if profile.manifest.precision is None]:
        raise ReportError(
            f"{name} has no profile {reference} for ONNX Runtime on processors: say what to compare with by --reference"
        )
    # From slow to quick is how the steps of compression are read.
    profiles.sort(key=lambda profile: (profile.name != reference, -profile.manifest.latency.median_ms))
    return profiles, [profile.manifest for profile in found if profile not in profiles]


def time_profiles(profiles: Sequence[Profile], rounds: int) -> list[dict[EngineName, EngineTiming]]:
    """Times every profile in every installed engine that can run it, all interleaved. Raises RuntimeMissing."""
    columns = [(index, runtime) for index, profile in enumerate(profiles) for runtime in _runtimes(profile.manifest)]
    size = profiles[0].manifest.input.size
    times = time_models([(profiles[index].path, runtime) for index, runtime in columns], size, rounds, THREADS)
    timings: list[dict[EngineName, EngineTiming]] = [{} for _ in profiles]
    for column, (index, runtime) in enumerate(columns):
        latency = summarise(times[:, column], THREADS, runtime)
        timings[index][runtime.engine] = EngineTiming(latency, speed_up(times, column))
    return timings


def _runtimes(manifest: Manifest) -> list[Runtime]:
    engines = installed_engines() if manifest.precision is None else (manifest.engine,)
    return [Runtime(engine, manifest.precision) for engine in engines]


def from_manifests(profiles: Sequence[Profile], rounds: int) -> list[MeasuredProfile]:
    """The profiles timed, with the accuracy that their manifests promise."""
    timed = zip(profiles, time_profiles(profiles, rounds), strict=True)
    return [
        MeasuredProfile(profile, timings, profile.manifest.accuracy.ap, profile.manifest.accuracy.difference)
        for profile, timings in timed
    ]


def validate(
    measured: Sequence[MeasuredProfile], dataset: Dataset, report: Callable[[str], None]
) -> list[MeasuredProfile]:
    """Computes accuracy and intervals anew from `dataset`, against the first profile. Raises ReportError."""
    first = measured[0]
    if dataset.labels != first.manifest.labels:
        raise ReportError(f"the profiles have labels {first.manifest.labels}, the data {dataset.labels}")
    truth, found = ground_truth(dataset), []
    for item in measured:
        report(f"validating {item.name} on {len(dataset)} images")
        found.append(detections(item, dataset, evaluation_thresholds(item.manifest)))
    changes = [None, *(_change(first.name, compare(truth, found[0], other)) for other in found[1:])]
    return [
        replace(item, ap=average_precision(truth, of_item).ap, difference=change)
        for item, of_item, change in zip(measured, found, changes, strict=True)
    ]


def _change(reference: str, difference: Difference) -> AccuracyDifference:
    ap = difference.ap
    return AccuracyDifference(
        reference=reference, ap=ap.value, lower=ap.lower, upper=ap.upper, resamples=difference.resamples
    )


def evaluation_thresholds(manifest: Manifest) -> Thresholds:
    """The thresholds that the manifest's variant is evaluated with."""
    structure = VARIANTS.get(manifest.variant)
    return structure.evaluation if structure else COCO_THRESHOLDS


def detections(item: MeasuredProfile, dataset: Dataset, thresholds: Thresholds) -> list[Detections]:
    """The detections of a profile in each image of `dataset`."""
    return predict(open_detector(item.profile.path, item.runtime), dataset, item.manifest.input, thresholds)
