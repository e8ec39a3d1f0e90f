"""The loaded models.

CatalogueError   no profile at all could be loaded, or the default model does not exist: the server cannot start
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles.imaging import Size
from damoserve_profiles.manifest import MANIFEST_FILE, MODEL_FILE, Manifest
from damoserve_profiles.repository import FileMismatch, ManifestInvalid, ProfileFolder, Repository
from damoserve_server.engines import Engine, EngineError, EngineLoader, EngineMissing, EngineOptions
from damoserve_server.errors import ModelNotFound, ProfileNotFound, ProfileUnavailable, ShuttingDown
from damoserve_server.latency import LatencyEstimate

WARM_UP_RUNS = 3

MAX_SHOWN = 100
"""Characters of an unknown name that an error repeats: clients accept about 8 kB of it in all."""

log = logging.getLogger(__name__)


class CatalogueError(Exception):
    """There is nothing to serve; the message says what to do."""


@dataclass(frozen=True, eq=False)
class ActiveProfile:
    """Loaded and warmed up: one engine for each worker."""

    manifest: Manifest
    engines: list[Engine]
    latency: LatencyEstimate
    new_engine: Callable[[], Engine]
    """Makes one more from the same verified bytes. Raises EngineError."""

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

    @property
    def size(self) -> Size:
        return self.manifest.input.size


@dataclass(frozen=True)
class FailedProfile:
    """Refused at load. The manifest is there if it could be read."""

    folder: ProfileFolder
    manifest: Manifest | None
    error: str
    """For the operator: may name folders of the server."""
    summary: str
    """For callers."""

    @property
    def name(self) -> str:
        return self.folder.profile


@dataclass(frozen=True)
class Model:
    """The newest version of a model; its active profiles the most accurate first."""

    name: str
    version: int
    active: tuple[ActiveProfile, ...]
    failed: tuple[FailedProfile, ...]

    @property
    def profiles(self) -> tuple[ActiveProfile | FailedProfile, ...]:
        return (*self.active, *self.failed)

    def find(self, profile: str) -> ActiveProfile | FailedProfile:
        """Raises ProfileNotFound."""
        for found in self.profiles:
            if found.name == profile:
                return found
        asked = profile[:MAX_SHOWN]
        raise ProfileNotFound(f"{self.name}/{asked}", f"the model {self.name} has no profile {asked!r}", profile=asked)

    def serving(self, profile: str | None) -> tuple[ActiveProfile, ...]:
        """The named profile, or all that are active; never empty. Raises ProfileNotFound or ProfileUnavailable."""
        found = (self.find(profile),) if profile is not None else self.active
        active = tuple(candidate for candidate in found if isinstance(candidate, ActiveProfile))
        if not active:
            what = f"the profile {profile}" if profile is not None else "any profile"
            raise ProfileUnavailable(f"{what} of the model {self.name} could not be loaded", model=self.name)
        return active


class Catalogue:
    """All models by name."""

    def __init__(self, models: Sequence[Model], default: str | None = None) -> None:
        """`default` None is the first model. Raises CatalogueError."""
        self.models: Mapping[str, Model] = {model.name: model for model in models}
        if not any(model.active for model in models):
            failures = [f"{failed.name}: {failed.error}" for model in models for failed in model.failed]
            raise CatalogueError("no profile could be loaded: " + ("; ".join(failures) or "the repository is empty"))
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

    def active(self) -> list[ActiveProfile]:
        return [profile for model in self.models.values() for profile in model.active]


@dataclass(frozen=True)
class Loading:
    """How profiles are loaded."""

    load_engine: EngineLoader
    options: EngineOptions
    workers: int
    clock: Callable[[], float] = time.monotonic
    stop: threading.Event = field(default_factory=threading.Event)
    """Once set, no further profile is loaded."""


def load_catalogue(repository: Repository, loading: Loading, default: str | None = None) -> Catalogue:
    """Loads the newest version of every model and warms it up. Raises CatalogueError, or ShuttingDown if stopped."""
    return Catalogue([_load_model(repository, name, loading) for name in repository.models()], default)


def _load_model(repository: Repository, name: str, loading: Loading) -> Model:
    version = repository.versions(name)[-1]
    loaded = [_load_profile(folder, loading) for folder in repository.profiles(name, version)]
    active = [profile for profile in loaded if isinstance(profile, ActiveProfile)]
    active.sort(key=lambda profile: profile.accuracy, reverse=True)
    failed = tuple(profile for profile in loaded if isinstance(profile, FailedProfile))
    return Model(name, version, tuple(active), failed)


def _load_profile(folder: ProfileFolder, loading: Loading) -> ActiveProfile | FailedProfile:
    if loading.stop.is_set():
        raise ShuttingDown
    try:
        # It is read again for loading: the check finds damage, not malice: who may write here can change the hash too.
        manifest = folder.verify()
        model = folder.model_path.read_bytes()
        new_engine = partial(loading.load_engine, model, manifest, loading.options)
        engines = [new_engine() for _ in range(loading.workers)]
        measured = [_warm_up(engine, manifest.input.size, loading) for engine in engines]
        baselines = {count: median(seconds[count] for seconds in measured) for count in measured[0]}
        return ActiveProfile(manifest, engines, LatencyEstimate(baselines, loading.clock), new_engine)
    except Exception as error:  # whatever is wrong with one profile, the others can serve
        log.exception("profile %s/%s is not served", folder.model, folder.profile)
        return FailedProfile(folder, _manifest_of(folder), str(error), _summary(error, folder))


def _warm_up(engine: Engine, size: Size, loading: Loading) -> dict[int, float]:
    """Seconds of every batch size, the largest first, so that all memory is allocated."""
    images = np.zeros((loading.options.max_batch_size, size.height, size.width, 3), np.uint8)
    return {count: _measure(engine, images[:count], loading.clock) for count in range(len(images), 0, -1)}


def _measure(engine: Engine, images: NDArray[np.uint8], clock: Callable[[], float]) -> float:
    """The quickest of several runs, for whatever else the machine does can only make them slower."""
    seconds = []
    for _ in range(WARM_UP_RUNS):
        started = clock()
        engine.run(images)
        seconds.append(clock() - started)
    return min(seconds)


def _summary(error: Exception, folder: ProfileFolder) -> str:
    """What is wrong and what to do, without paths of the server or the words of its runtime: the log has those."""
    where = f"{folder.model}/{folder.version}/{folder.profile}"
    match error:
        case ManifestInvalid():
            return f"{where}/{MANIFEST_FILE} is not a valid manifest; build the profile again"
        case FileMismatch():
            return f"a file of {where} is not what its manifest promises (SHA-256); build or copy the profile again"
        case EngineMissing():
            return f"{where}: {error}"
        case EngineError():
            return f"the runtime of the server cannot use {where}/{MODEL_FILE}; see the server's log"
        case _:
            return f"{where} could not be loaded; see the server's log"


def _manifest_of(folder: ProfileFolder) -> Manifest | None:
    try:
        return folder.read_manifest()
    except ManifestInvalid:
        return None
