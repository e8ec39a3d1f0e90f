"""Agreement: how far the profiles of a version find the boxes that their reference finds, as their manifests record it.

A server that compares the same two on today's images tells by it whether a profile still does what it was built to do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from damoserve_compress.measure.runtime import ONNX_RUNTIME, Runtime, check_runtime, installed_engines
from damoserve_profiles.agreement import BoxCounts, compare, reference_of
from damoserve_profiles.manifest import Agreement, Manifest, Thresholds
from damoserve_profiles.postprocess import Detections
from damoserve_profiles.repository import ProfileFolder, RepositoryError

Detect = Callable[[ProfileFolder, Manifest, Thresholds], list[Detections]]
"""A function that gives a profile's detections in each validation image, at the given thresholds."""


def add_agreement(
    folders: Sequence[ProfileFolder], data_name: str, detect: Detect, report: Callable[[str], None]
) -> None:
    """Writes into the manifests of a version how far each profile agrees with their reference.

    The reference itself has no agreement, nor has what takes another input or knows other labels. What is damaged or
    does not run here stays as it is, and is reported.
    """
    manifests = {}
    for folder in folders:
        try:
            manifests[folder] = folder.verify()
        except RepositoryError as error:
            report(f"{folder.profile}: not compared: {error}")
    if not manifests:
        return
    reference = reference_of(manifests.values())
    folder = next(folder for folder, manifest in manifests.items() if manifest is reference)
    comparison = _Comparison(reference, folder, data_name, detect)
    for folder, manifest in manifests.items():
        try:
            agreement = comparison.agreement(folder, manifest)
        except _DoesNotRun as error:
            report(f"{manifest.profile}: not compared with {reference.profile}: {error}")
            continue
        if agreement is not None:
            report(f"{manifest.profile}: agreement {agreement.f1:.4f} with {reference.profile}")
        if agreement != manifest.agreement:
            folder.write(manifest.model_copy(update={"agreement": agreement}))


def serving_runtime(manifest: Manifest) -> Runtime:
    """The runtime that serves a profile here: its preferred engine, or ONNX Runtime where that is not installed."""
    if manifest.precision is None and manifest.engine not in installed_engines():
        return ONNX_RUNTIME
    return Runtime(manifest.engine, manifest.precision)


class _DoesNotRun(Exception):
    """The runtime of a profile is not there, or cannot compute in its precision."""


@dataclass
class _Comparison:
    """Compares profiles with one reference."""

    reference: Manifest
    folder: ProfileFolder
    data_name: str
    detect: Detect
    _wanted: dict[Thresholds, list[Detections]] = field(default_factory=dict)

    def agreement(self, folder: ProfileFolder, manifest: Manifest) -> Agreement | None:
        """Raises _DoesNotRun."""
        reference = self.reference
        if manifest is reference or (manifest.input, manifest.labels) != (reference.input, reference.labels):
            return None
        try:
            check_runtime(serving_runtime(manifest))
        except ValueError as error:
            raise _DoesNotRun(str(error)) from error
        return self._add_up(manifest, self.detect(folder, manifest, manifest.thresholds))

    def _add_up(self, manifest: Manifest, found: list[Detections]) -> Agreement:
        by_label: dict[int, BoxCounts] = {}
        for one, other in zip(found, self._wanted_at(manifest.thresholds), strict=True):
            for label, boxes in compare(one, other).by_label.items():
                by_label[label] = by_label.get(label, BoxCounts()) + boxes
        return Agreement(
            reference=self.reference.profile,
            dataset=self.data_name,
            images=len(found),
            f1=round(sum(by_label.values(), BoxCounts()).agreement, 5),
            per_class={manifest.labels[label]: round(by_label[label].agreement, 5) for label in sorted(by_label)},
        )

    def _wanted_at(self, thresholds: Thresholds) -> list[Detections]:
        if thresholds not in self._wanted:
            self._wanted[thresholds] = self.detect(self.folder, self.reference, thresholds)
        return self._wanted[thresholds]
