"""Metrics of models, profiles and tiers as they are loaded and set, and of the versions of the build."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge

from damoserve_profiles.manifest import Manifest
from damoserve_server.configuration.settings import Tiers
from damoserve_server.models.catalogue import ProfileState
from damoserve_server.scheduling.selection import Tier

RELOADED_FILES = ("certificate", "tokens")
"""Files that are read again when they have changed."""
RELOAD_RESULTS = {True: "taken", False: "refused"}
"""The label of a change of such a file, by whether it was accepted."""
RELOADS = ("switched", "refused", "abandoned", "removed")
"""Ends of an attempt to change the version of a model."""
BUILD = {
    "version": ("damoserve",),
    "grpc": ("grpcio",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
}
"""The packages whose version is the value of each label of the build; of several the first that is installed."""


class ModelMetrics:
    """The metrics of all models."""

    def __init__(self, registry: CollectorRegistry, tiers: Tiers) -> None:
        profile = ["model", "profile"]
        self.profile_state = Gauge(
            "damoserve_profile_state", "1 for the state that the profile is in.", [*profile, "state"], registry=registry
        )
        self.profile_info = Gauge(
            "damoserve_profile_info", "1; what the profile is.", [*profile, "version", "variant"], registry=registry
        )
        self.profile_accuracy = Gauge(
            "damoserve_profile_accuracy",
            "Average precision of a profile that serves, 0 to 1, by its manifest.",
            profile,
            registry=registry,
        )
        self.reloads = Counter(
            "damoserve_reloads",
            "Attempts to change the version of a model: `switched`, `refused` (the old one serves), `abandoned` (the "
            "caller left), `removed` (gone from the repository).",
            ["model", "result"],
            registry=registry,
        )
        self.credential_reloads = Counter(
            "damoserve_credential_reloads",
            "Changed files that were read again, and whether the change was `taken` or `refused`.",
            ["file", "result"],
            registry=registry,
        )
        self._states_shown: dict[str, dict[str, ProfileState]] = {}
        for file in RELOADED_FILES:
            for result in RELOAD_RESULTS.values():
                self.credential_reloads.labels(file, result)
        _show_tiers(registry, tiers)
        _show_build(registry)

    def add_profile(self, manifest: Manifest) -> None:
        model, profile = manifest.model, manifest.profile
        self.profile_info.labels(model, profile, manifest.version, manifest.variant).set(1)
        self.profile_accuracy.labels(model, profile).set(manifest.accuracy.ap)

    def drop_profile(self, manifest: Manifest, successor: Manifest | None) -> None:
        """Removes the series that show a profile, unless its successor shows the same. Its counts stay."""
        model, profile = manifest.model, manifest.profile
        if successor is None or (successor.version, successor.variant) != (manifest.version, manifest.variant):
            self.profile_info.remove(model, profile, manifest.version, manifest.variant)
        if successor is None:
            self.profile_accuracy.remove(model, profile)

    def show_states(self, model: str, states: Mapping[str, ProfileState]) -> None:
        """Shows the states of a model's profiles, and removes those of profiles that it no longer has."""
        for name in self._states_shown.get(model, {}).keys() - states.keys():
            self.profile_state.remove_by_labels({"model": model, "profile": name})
        for name, state in states.items():
            for possible in ProfileState:
                self.profile_state.labels(model, name, possible).set(state == possible)
        self._states_shown[model] = dict(states)
        for result in RELOADS:
            self.reloads.labels(model, result)

    def count_credential_reload(self, file: str, accepted: bool) -> None:
        """Counts a change of one of RELOADED_FILES."""
        self.credential_reloads.labels(file, RELOAD_RESULTS[accepted]).inc()


def _show_tiers(registry: CollectorRegistry, tiers: Tiers) -> None:
    objective = Gauge(
        "damoserve_tier_objective_seconds", "Within what requests are to be answered.", ["tier"], registry=registry
    )
    floor = Gauge(
        "damoserve_tier_accuracy_floor",
        "Average precision, 0 to 1, that the tier's profiles have at least.",
        ["tier"],
        registry=registry,
    )
    for tier in Tier:
        objective.labels(tier).set(tiers[tier].objective_ms / 1000)
        floor.labels(tier).set(tiers[tier].accuracy_floor)


def _show_build(registry: CollectorRegistry) -> None:
    labels = {label: _installed(packages) for label, packages in BUILD.items()} | {"python": platform.python_version()}
    help_text = "1; versions of the server and of what it runs on, `none` where a runtime is not installed."
    Gauge("damoserve_build_info", help_text, list(labels), registry=registry).labels(**labels).set(1)


def _installed(packages: tuple[str, ...]) -> str:
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            pass
    return "none"
