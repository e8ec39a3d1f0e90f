"""Finds what a model name of the protocol stands for: `model`, or `model/profile`."""

from collections.abc import Iterator
from dataclasses import dataclass

from damoserve_server.errors import ModelNotFound
from damoserve_server.models.catalogue import (
    MAX_SHOWN,
    ActiveProfile,
    Catalogue,
    FailedProfile,
    IdleProfile,
    Model,
    Profile,
    ProfileState,
)


@dataclass(frozen=True)
class Target:
    """A model, or one of its profiles."""

    model: Model
    profile: Profile | None = None

    @property
    def name(self) -> str:
        return join_name(self.model.name, None if self.profile is None else self.profile.name)

    @property
    def version(self) -> str:
        return str(self.model.version)

    @property
    def ready(self) -> bool:
        return bool(self.model.active) if self.profile is None else isinstance(self.profile, ActiveProfile)

    @property
    def loading(self) -> bool:
        """Whether the target is being loaded and does not serve yet."""
        profiles = self.model.profiles if self.profile is None else (self.profile,)
        return not self.ready and any(profile.state is ProfileState.LOADING for profile in profiles)

    @property
    def reason(self) -> str:
        """The reason why the target does not serve; empty if it does."""
        if isinstance(self.profile, FailedProfile):
            return self.profile.summary
        if isinstance(self.profile, IdleProfile):
            return f"it is {self.profile.state}"
        if self.ready:
            return ""
        return "it is loading" if self.loading else "none of its profiles is loaded"


def split_name(name: str) -> tuple[str, str | None]:
    """Splits a name of the protocol into the model, and the profile or None."""
    model, _, profile = name.partition("/")
    return model, profile or None


def join_name(model: str, profile: str | None) -> str:
    """Joins what `split_name` has split."""
    return model if profile is None else f"{model}/{profile}"


def find_target(catalogue: Catalogue, name: str, version: str = "") -> Target:
    """Finds the target of a name. An empty version means the one that serves.

    Raises ModelNotFound or ProfileNotFound.
    """
    model_name, profile = split_name(name)
    model = catalogue.model(model_name)
    target = Target(model, None if profile is None else model.find(profile))
    if version not in ("", target.version):
        requested = f"{target.name} in version {version[:MAX_SHOWN]!r}"
        raise ModelNotFound(target.name, f"{requested} is not loaded; version {target.version} is", model=target.name)
    return target


def all_targets(catalogue: Catalogue) -> Iterator[Target]:
    """Yields each model, followed by its profiles."""
    for model in catalogue.models.values():
        yield Target(model)
        yield from (Target(model, profile) for profile in model.profiles)
