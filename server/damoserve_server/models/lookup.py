"""Models, versions and profiles in the repository, by the names that callers give.

A caller's name never becomes a path. All of it blocks, as it reads folders.
"""

import logging

from damoserve_profiles.repository import AliasesInvalid, ProfileFolder, Repository
from damoserve_server.errors import (
    AliasNotFound,
    ModelNotFound,
    ProfileNotFound,
    RepositoryUnusable,
    VersionNotFound,
)
from damoserve_server.models.catalogue import MAX_SHOWN, Model

log = logging.getLogger(__name__)


def find_folder(repository: Repository, model: Model, profile: str) -> ProfileFolder:
    """Returns the folder of a profile of the version that serves. Raises ProfileNotFound."""
    for folder in repository.profiles(model.name, model.version):
        if folder.profile == profile:
            return folder
    asked = profile[:MAX_SHOWN]
    message = f"version {model.version} of the model {model.name} has no profile {asked!r} in the repository"
    raise ProfileNotFound(f"{model.name}/{asked}", message, profile=asked)


def find_version(repository: Repository, model: str, target: int | str | None) -> int:
    """Returns a version by number or alias, or the one to be served for None.

    Raises NotFound or RepositoryUnusable.
    """
    versions = _versions(repository, model)
    try:
        if target is None:
            return repository.serving(model)
        version = _version_of_alias(repository, model, target) if isinstance(target, str) else target
    except AliasesInvalid as error:
        raise _unusable(model, error) from error
    if version not in versions:
        raise VersionNotFound(f"{model}/{version}", f"the model {model} has no version {version}", version=version)
    return version


def set_alias(repository: Repository, model: str, alias: str, version: int | None) -> None:
    """Gives a name to a version, or takes the name away for None. Raises NotFound or RepositoryUnusable."""
    if version is not None:
        find_version(repository, model, version)
    _versions(repository, model)
    try:
        repository.set_alias(model, alias, version)
    except AliasesInvalid as error:
        raise _unusable(model, error) from error
    except OSError as error:
        log.warning("the alias %s of %s could not be written: %s", alias, model, error)
        message = "the server cannot write to its repository; write aliases.json where you can"
        raise RepositoryUnusable(message, model=model) from error


def _versions(repository: Repository, model: str) -> list[int]:
    if model not in repository.models():
        asked = model[:MAX_SHOWN]
        raise ModelNotFound(asked, f"the repository has no model {asked!r}", model=asked)
    return repository.versions(model)


def _version_of_alias(repository: Repository, model: str, alias: str) -> int:
    aliases = repository.aliases(model)
    if alias not in aliases:
        asked = alias[:MAX_SHOWN]
        raise AliasNotFound(f"{model}/{asked}", f"the model {model} has no alias {asked!r}", alias=asked)
    return aliases[alias]


def _unusable(model: str, error: AliasesInvalid) -> RepositoryUnusable:
    log.error("%s", error)
    message = f"{model}/aliases.json is invalid, or names as serving a version that is not there; set it right"
    return RepositoryUnusable(message, model=model)
