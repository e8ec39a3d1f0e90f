"""The Prometheus series of the fidelity monitor."""

from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from damoserve_profiles.agreement import Comparison
from damoserve_profiles.manifest import Manifest

RESULTS = ("compared", "dropped_busy", "dropped_unloaded", "not_comparable", "failed")
"""Outcomes of a sampled answer: compared; no room to keep it, since the device was hardly idle; its profile or the
reference was unloaded; the reference takes another input or knows other labels; the reference could not be run."""
SHIFTS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Upper bounds of the buckets for differences of scores."""


class FidelityMetrics:
    """Counters of how far the profiles find what their reference finds."""

    def __init__(self, registry: CollectorRegistry) -> None:
        profile = ["model", "profile"]
        self._images = Counter(
            "damoserve_fidelity_images",
            "Sampled answers: `compared` with the reference profile, or why not: `dropped_busy` (no room to keep it, "
            "as the device was hardly idle), `dropped_unloaded` (it or the reference was unloaded meanwhile), "
            "`not_comparable` (the reference takes another input or knows other labels), `failed` (the reference could "
            "not be run; the log says why).",
            [*profile, "result"],
            registry=registry,
        )
        self._boxes = Counter(
            "damoserve_fidelity_boxes",
            "Boxes of compared answers: `matched`, `missing` (only the reference has it), `extra` (only the profile "
            "has it).",
            [*profile, "label", "result"],
            registry=registry,
        )
        self._score_shift = Histogram(
            "damoserve_fidelity_score_shift",
            "Difference of the scores of matched boxes, without the sign.",
            profile,
            registry=registry,
            buckets=SHIFTS,
        )
        self._expected = Gauge(
            "damoserve_fidelity_expected_agreement",
            "Agreement with the reference when the profile was built. Absent for the reference, and where the manifest "
            "does not know it or knows it against another reference.",
            profile,
            registry=registry,
        )

    def add_profile(self, manifest: Manifest) -> None:
        """Creates the series of a profile that serves, but for the expected agreement."""
        key = manifest.model, manifest.profile
        for result in RESULTS:
            self._images.labels(*key, result)
        for label, result in product(manifest.labels, ("matched", "missing", "extra")):
            self._boxes.labels(*key, label, result)
        self._score_shift.labels(*key)

    def expect(self, model: str, profile: str, agreement: float | None) -> None:
        """Sets the agreement that the manifest promises; None where it does not know the present reference."""
        if agreement is not None:
            self._expected.labels(model, profile).set(agreement)
        else:
            self._expected.remove_by_labels({"model": model, "profile": profile})

    def count(self, manifest: Manifest, result: str) -> None:
        """Counts one sampled answer by its outcome, one of `RESULTS`."""
        self._images.labels(manifest.model, manifest.profile, result).inc()

    def observe(self, manifest: Manifest, comparison: Comparison) -> None:
        """Counts the boxes of an image; the image itself is counted by `count`."""
        key = manifest.model, manifest.profile
        for label, counts in comparison.by_label.items():
            for result, boxes in vars(counts).items():
                self._boxes.labels(*key, manifest.labels[label], result).inc(boxes)
        shifts = self._score_shift.labels(*key)
        for shift in comparison.score_shifts.tolist():
            shifts.observe(shift)
