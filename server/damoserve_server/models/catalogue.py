"""The catalogue of models: immutable objects by name, each exchanged in one step.

CatalogueError   no profile at all could be loaded, or the default model does not exist: the server cannot start
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import ClassVar

from damoserve_profiles.imaging import ResizeMode, Size
from damoserve_profiles.manifest import Manifest
from damoserve_profiles.repository import ProfileFolder
from damoserve_server.engines.engine import Engine
from damoserve_server.errors import ModelNotFound, ProfileLoading, ProfileNotFound, ProfileUnavailable
from damoserve_server.scheduling.latency import LatencyEstimate

MAX_SHOWN = 100
"""Most characters of an unknown name that an error repeats: clients accept about 8 kB of a message in all."""


class CatalogueError(Exception):
    """Raised when there is nothing to serve; the message says what to do."""


class ProfileState(StrEnum):
    """The state of a profile in the catalogue."""

    ACTIVE = "active"
    FAILED = "failed"
    LOADING = "loading"
    UNLOADED = "unloaded"


@dataclass(frozen=True, eq=False)
class ActiveProfile:
    """A profile that is loaded and warmed up.

    Its engines are freed when neither the catalogue nor a request holds it any more.
    """

    state: ClassVar = ProfileState.ACTIVE

    manifest: Manifest
    engines: list[Engine]
    """Engine of each worker, by its number; whoever starts a worker anew replaces its engine."""
    latency: LatencyEstimate
    """Seconds of a batch of each size, learned while it serves."""
    new_engine: Callable[[], Engine]
    """Function that makes one more engine, of the same bytes and checked like the others.

    It takes seconds, and raises EngineError or RepositoryError.
    """

    @property
    def name(self) -> str:
        return self.manifest.profile

    @property
    def key(self) -> tuple[str, str]:
        """Names of the model and the profile: the first labels of its metrics."""
        return self.manifest.model, self.manifest.profile

    @property
    def accuracy(self) -> float:
        """Average precision, 0 to 1."""
        return self.manifest.accuracy.ap

    @cached_property
    def size(self) -> Size:
        """Size of the network's input."""
        return self.manifest.input.size

    @cached_property
    def input(self) -> tuple[Size, ResizeMode]:
        """Size of the network's input, and how images are brought to it."""
        return self.size, self.manifest.input.resize


@dataclass(frozen=True)
class FailedProfile:
    """A profile that was refused when it was loaded. The manifest is there if it could be read."""

    state: ClassVar = ProfileState.FAILED

    folder: ProfileFolder
    manifest: Manifest | None
    error: str
    """Message for the operator; it may name folders of the server."""
    summary: str
    """Message for callers."""
    unsuited: bool = False
    """True if nothing is wrong with it, but this server lacks a runtime or a device that it needs."""

    @property
    def name(self) -> str:
        return self.folder.profile


@dataclass(frozen=True)
class IdleProfile:
    """A profile that is not loaded yet, or not any more. The manifest is there if it could be read."""

    folder: ProfileFolder
    manifest: Manifest | None
    state: ProfileState

    @property
    def name(self) -> str:
        return self.folder.profile


Profile = ActiveProfile | FailedProfile | IdleProfile


@dataclass(frozen=True)
class Model:
    """One version of a model; its active profiles the most accurate first."""

    name: str
    version: int
    active: tuple[ActiveProfile, ...] = ()
    failed: tuple[FailedProfile, ...] = ()
    idle: tuple[IdleProfile, ...] = ()
    refused: tuple[FailedProfile, ...] = ()
    """Profiles for which the version that was to take the place of this one was refused, the last time."""

    @classmethod
    def of(cls, name: str, version: int, profiles: Iterable[Profile]) -> "Model":
        """Makes a model of profiles in any state."""
        everything = list(profiles)
        active = [profile for profile in everything if isinstance(profile, ActiveProfile)]
        active.sort(key=lambda profile: profile.accuracy, reverse=True)
        failed = tuple(profile for profile in everything if isinstance(profile, FailedProfile))
        idle = tuple(profile for profile in everything if isinstance(profile, IdleProfile))
        return cls(name, version, tuple(active), failed, idle)

    def with_profile(self, profile: Profile) -> "Model":
        """Returns the same model with this profile, in place of one of its name."""
        others = [other for other in self.profiles if other.name != profile.name]
        return replace(self.of(self.name, self.version, [*others, profile]), refused=self.refused)

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """All profiles, in whatever state."""
        return (*self.active, *self.failed, *self.idle)

    def find(self, profile: str) -> Profile:
        """Returns the profile of this name. Raises ProfileNotFound."""
        for candidate in self.profiles:
            if candidate.name == profile:
                return candidate
        asked = profile[:MAX_SHOWN]
        raise ProfileNotFound(f"{self.name}/{asked}", f"the model {self.name} has no profile {asked!r}", profile=asked)

    def serving(self, profile: str | None) -> tuple[ActiveProfile, ...]:
        """Returns the named profile, or all that are active; never empty.

        Raises ProfileNotFound, ProfileLoading or ProfileUnavailable.
        """
        candidates = (self.find(profile),) if profile is not None else self.profiles
        active = tuple(candidate for candidate in candidates if isinstance(candidate, ActiveProfile))
        if active:
            return active
        what = f"the profile {profile}" if profile is not None else "every profile"
        states = {candidate.state for candidate in candidates}
        if ProfileState.LOADING in states:
            raise ProfileLoading(f"{what} of the model {self.name} is being loaded; try again later", model=self.name)
        how = {ProfileState.UNLOADED: "was unloaded", ProfileState.FAILED: "could not be loaded"}
        reasons = " or ".join(how[state] for state in sorted(states)) or "is gone"
        raise ProfileUnavailable(f"{what} of the model {self.name} {reasons}", model=self.name)


class Catalogue:
    """All models by name.

    It is changed on the event loop only; whoever holds a model, or `models`, keeps what it was.
    """

    def __init__(self, models: Sequence[Model], default: str | None = None) -> None:
        """Takes the models that were loaded; `default` None is the first of them. Raises CatalogueError."""
        self.models: Mapping[str, Model] = {model.name: model for model in models}
        if not any(model.active for model in models):
            failures = [f"{failed.name}: {failed.error}" for model in models for failed in model.failed]
            why = "; ".join(failures) or "no version in the repository has one"
            raise CatalogueError(f"no profile could be loaded: {why}")
        self._default = default if default is not None else models[0].name
        if self._default not in self.models:
            raise CatalogueError(f"the default model {self._default!r} is not in the repository")

    def model(self, name: str) -> Model:
        """Returns the model of this name, or the default model for an empty one. Raises ModelNotFound."""
        try:
            return self.models[name or self._default]
        except KeyError:
            asked = name[:MAX_SHOWN]
            raise ModelNotFound(asked, f"there is no model {asked!r}", model=asked) from None

    def put(self, model: Model) -> None:
        """Puts a model in the place of the one of its name, in one step."""
        self.models = dict(sorted({**self.models, model.name: model}.items()))

    def remove(self, name: str) -> None:
        """Removes the model of this name, in one step."""
        self.models = {other: model for other, model in self.models.items() if other != name}

    def active(self) -> list[ActiveProfile]:
        """Lists the active profiles of all models."""
        return [profile for model in self.models.values() for profile in model.active]
