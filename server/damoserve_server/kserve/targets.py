"""What a model name of the protocol means: `model`, or `model/profile`."""

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
        return join(self.model.name, None if self.profile is None else self.profile.name)

    @property
    def version(self) -> str:
        return str(self.model.version)

    @property
    def ready(self) -> bool:
        return bool(self.model.active) if self.profile is None else isinstance(self.profile, ActiveProfile)

    @property
    def loading(self) -> bool:
        """Whether it does not serve yet."""
        profiles = self.model.profiles if self.profile is None else (self.profile,)
        return not self.ready and any(profile.state is ProfileState.LOADING for profile in profiles)

    @property
    def reason(self) -> str:
        """Why it does not serve; empty if it does."""
        if isinstance(self.profile, FailedProfile):
            return self.profile.summary
        if isinstance(self.profile, IdleProfile):
            return f"it is {self.profile.state}"
        if self.ready:
            return ""
        return "it is loading" if self.loading else "none of its profiles is loaded"


def split(name: str) -> tuple[str, str | None]:
    """The model and the profile."""
    model, _, profile = name.partition("/")
    return model, profile or None


def join(model: str, profile: str | None) -> str:
    """Undoes `split`."""
    return model if profile is None else f"{model}/{profile}"


def find(catalogue: Catalogue, name: str, version: str = "") -> Target:
    """An empty version means the one that serves. Raises ModelNotFound or ProfileNotFound."""
    model_name, profile = split(name)
    model = catalogue.model(model_name)
    target = Target(model, None if profile is None else model.find(profile))
    if version not in ("", target.version):
        asked = f"{target.name} in version {version[:MAX_SHOWN]!r}"
        raise ModelNotFound(target.name, f"{asked} is not loaded; version {target.version} is", model=target.name)
    return target


def every(catalogue: Catalogue) -> Iterator[Target]:
    """Each model, followed by its profiles."""
    for model in catalogue.models.values():
        yield Target(model)
        yield from (Target(model, profile) for profile in model.profiles)
