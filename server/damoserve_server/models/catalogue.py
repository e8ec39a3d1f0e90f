"""What is loaded: immutable models by name, each exchanged in one step.

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
"""Characters of an unknown name that an error repeats: clients accept about 8 kB of it in all."""


class CatalogueError(Exception):
    """There is nothing to serve; the message says what to do."""


class ProfileState(StrEnum):
    """What a profile is doing."""

    ACTIVE = "active"
    FAILED = "failed"
    LOADING = "loading"
    UNLOADED = "unloaded"


@dataclass(frozen=True, eq=False)
class ActiveProfile:
    """Loaded and warmed up. Its engines are freed when neither the catalogue nor a request holds it any more."""

    state: ClassVar = ProfileState.ACTIVE

    manifest: Manifest
    engines: list[Engine]
    """One for each worker, by its number; whoever rebuilds a worker replaces its engine."""
    latency: LatencyEstimate
    new_engine: Callable[[], Engine]
    """One more, of the same bytes and checked like the others. Takes seconds. Raises EngineError or RepositoryError."""

    @property
    def name(self) -> str:
        return self.manifest.profile

    @property
    def key(self) -> tuple[str, str]:
        """The model and the profile: the first labels of its metrics."""
        return self.manifest.model, self.manifest.profile

    @property
    def accuracy(self) -> float:
        return self.manifest.accuracy.ap

    @cached_property
    def size(self) -> Size:
        return self.manifest.input.size

    @cached_property
    def input(self) -> tuple[Size, ResizeMode]:
        """What images are brought to."""
        return self.size, self.manifest.input.resize


@dataclass(frozen=True)
class FailedProfile:
    """Refused at load. The manifest is there if it could be read."""

    state: ClassVar = ProfileState.FAILED

    folder: ProfileFolder
    manifest: Manifest | None
    error: str
    """For the operator: may name folders of the server."""
    summary: str
    """For callers."""
    unsuited: bool = False
    """Nothing is wrong with it, but this server lacks what it needs."""

    @property
    def name(self) -> str:
        return self.folder.profile


@dataclass(frozen=True)
class IdleProfile:
    """Not loaded yet, or not any more. The manifest is there if it could be read."""

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
    """What was wrong with the version that was to take the place of this one, the last time it was tried."""

    @classmethod
    def of(cls, name: str, version: int, profiles: Iterable[Profile]) -> "Model":
        every = list(profiles)
        active = [profile for profile in every if isinstance(profile, ActiveProfile)]
        active.sort(key=lambda profile: profile.accuracy, reverse=True)
        failed = tuple(profile for profile in every if isinstance(profile, FailedProfile))
        idle = tuple(profile for profile in every if isinstance(profile, IdleProfile))
        return cls(name, version, tuple(active), failed, idle)

    def having(self, profile: Profile) -> "Model":
        """The same with this profile, in place of one of its name."""
        others = [other for other in self.profiles if other.name != profile.name]
        return replace(self.of(self.name, self.version, [*others, profile]), refused=self.refused)

    @property
    def profiles(self) -> tuple[Profile, ...]:
        return (*self.active, *self.failed, *self.idle)

    def find(self, profile: str) -> Profile:
        """Raises ProfileNotFound."""
        for found in self.profiles:
            if found.name == profile:
                return found
        asked = profile[:MAX_SHOWN]
        raise ProfileNotFound(f"{self.name}/{asked}", f"the model {self.name} has no profile {asked!r}", profile=asked)

    def serving(self, profile: str | None) -> tuple[ActiveProfile, ...]:
        """The named profile, or all that are active; never empty.

        Raises ProfileNotFound, ProfileLoading or ProfileUnavailable.
        """
        found = (self.find(profile),) if profile is not None else self.profiles
        active = tuple(candidate for candidate in found if isinstance(candidate, ActiveProfile))
        if active:
            return active
        what = f"the profile {profile}" if profile is not None else "every profile"
        states = {candidate.state for candidate in found}
        if ProfileState.LOADING in states:
            raise ProfileLoading(f"{what} of the model {self.name} is being loaded; try again later", model=self.name)
        how = {ProfileState.UNLOADED: "was unloaded", ProfileState.FAILED: "could not be loaded"}
        reasons = " or ".join(how[state] for state in sorted(states)) or "is gone"
        raise ProfileUnavailable(f"{what} of the model {self.name} {reasons}", model=self.name)


class Catalogue:
    """All models by name. Changed on the event loop only; whoever holds a model or `models` keeps what it was."""

    def __init__(self, models: Sequence[Model], default: str | None = None) -> None:
        """`default` None is the first model. Raises CatalogueError."""
        self.models: Mapping[str, Model] = {model.name: model for model in models}
        if not any(model.active for model in models):
            failures = [f"{failed.name}: {failed.error}" for model in models for failed in model.failed]
            why = "; ".join(failures) or "no version in the repository has one"
            raise CatalogueError(f"no profile could be loaded: {why}")
        self._default = default if default is not None else models[0].name
        if self._default not in self.models:
            raise CatalogueError(f"the default model {self._default!r} is not in the repository")

    def model(self, name: str) -> Model:
        """An empty name means the default model. Raises ModelNotFound."""
        try:
            return self.models[name or self._default]
        except KeyError:
            asked = name[:MAX_SHOWN]
            raise ModelNotFound(asked, f"there is no model {asked!r}", model=asked) from None

    def put(self, model: Model) -> None:
        """From now on this is the model of its name."""
        self.models = dict(sorted({**self.models, model.name: model}.items()))

    def remove(self, name: str) -> None:
        self.models = {other: model for other, model in self.models.items() if other != name}

    def active(self) -> list[ActiveProfile]:
        return [profile for model in self.models.values() for profile in model.active]
