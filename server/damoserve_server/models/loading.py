"""Profiles from files: verified, loaded once for each worker, checked on the golden image, warmed up and timed."""

import ctypes
import functools
import hashlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles import golden
from damoserve_profiles.imaging import Size
from damoserve_profiles.manifest import MANIFEST_FILE, MODEL_FILE, Manifest
from damoserve_profiles.repository import (
    FileMismatch,
    ManifestInvalid,
    ProfileFolder,
    Repository,
    RepositoryError,
    missing_bundle,
)
from damoserve_server.engines.engine import Engine, EngineError, EngineLoader, EngineMissing, EngineOptions, EngineWrong
from damoserve_server.errors import ShuttingDown
from damoserve_server.models.catalogue import (
    ActiveProfile,
    Catalogue,
    CatalogueError,
    FailedProfile,
    IdleProfile,
    Model,
    Profile,
    ProfileState,
)
from damoserve_server.scheduling.latency import LatencyEstimate

WARM_UP_RUNS = 3
"""Number of runs of each batch size before an engine serves."""
LAYOUT = f"<model>/<version>/<profile>/{MANIFEST_FILE}"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProfileLoader:
    """The settings by which profiles are loaded."""

    load_engine: EngineLoader
    """Function that makes an engine of a model file."""
    options: EngineOptions
    workers: int
    """Number of engines of each profile."""
    clock: Callable[[], float] = time.monotonic
    stop: threading.Event = field(default_factory=threading.Event)
    """Event after which no further profile is loaded."""


class ModelFile:
    """The verified model of a profile, to be read again at any time.

    The file is held open, not its bytes: so it outlasts being deleted or replaced, and takes no memory.
    """

    def __init__(self, folder: ProfileFolder, manifest: Manifest) -> None:
        self._path, self._record = folder.model_path, manifest.files[MODEL_FILE]
        self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)

    def read(self) -> bytes:
        """Returns the bytes of the model. Raises FileMismatch if someone wrote into the file.

        The hash finds damage, not malice: whoever may write there can change it too.
        """
        content = os.pread(self._file, self._record.bytes, 0)
        if hashlib.sha256(content).hexdigest() != self._record.sha256:
            raise FileMismatch(f"{self._path} differs from its manifest (SHA-256); build or copy the profile again")
        return content


def require_models(repository: Repository) -> None:
    """Checks that the folder of models can be used. Raises CatalogueError, which says what to do."""
    root = repository.root
    instead = f"give `repository` (--repository) a folder with {LAYOUT}, or leave it out to serve the bundled model"
    try:
        empty = not any(root.iterdir())
        models = repository.models()
    except FileNotFoundError:
        absence = missing_bundle(root) or f"the repository {root} does not exist: {instead}"
        raise CatalogueError(absence) from None
    except NotADirectoryError:
        raise CatalogueError(f"the repository {root} is not a folder: {instead}") from None
    except PermissionError as error:
        denied = error.filename or root
        raise CatalogueError(
            f"the repository {root} cannot be read: the user of the server (uid {os.geteuid()}) may not look into "
            f"{denied}; give it the right to, or {instead}"
        ) from None
    if empty:
        raise CatalogueError(f"the repository {root} is empty: {instead}")
    if not models:
        raise CatalogueError(f"the repository {root} has no model in it: {instead}")


def load_catalogue(repository: Repository, loader: ProfileLoader, default: str | None = None) -> Catalogue:
    """Loads the version to be served of every model. Raises CatalogueError, or ShuttingDown if stopped."""
    models, errors = [], []
    for name in repository.models():
        try:
            version = repository.serving(name)
        except RepositoryError as error:
            log.exception("the model %s is not served", name)
            errors.append(str(error))
            continue
        loaded = [load_profile(folder, loader) for folder in repository.profiles(name, version)]
        models.append(Model.of(name, version, loaded))
    if errors and not models:
        raise CatalogueError("; ".join(errors))
    return Catalogue(models, default)


def load_version(folders: list[ProfileFolder], loader: ProfileLoader, unloaded: frozenset[str]) -> list[Profile]:
    """Loads the profiles of a version except those that are to stay unloaded; ends at the first that is damaged.

    Raises ShuttingDown if stopped.
    """
    profiles: list[Profile] = []
    for folder in folders:
        if folder.profile in unloaded:
            profiles.append(IdleProfile(folder, manifest_of(folder), ProfileState.UNLOADED))
            continue
        profiles.append(loaded := load_profile(folder, loader))
        if isinstance(loaded, FailedProfile) and not loaded.unsuited:
            break
    return profiles


def load_profile(folder: ProfileFolder, loader: ProfileLoader) -> ActiveProfile | FailedProfile:
    """Loads one profile, with an engine for each worker; it fails by any error. Raises ShuttingDown if stopped."""
    if loader.stop.is_set():
        raise ShuttingDown
    try:
        manifest = folder.verify()
        check = _golden_check(folder, manifest, loader.options.max_batch_size)
        new_engine = partial(_new_engine, ModelFile(folder, manifest), manifest, check, loader)
        engines = [new_engine() for _ in range(loader.workers)]
        measured = [_warm_up(engine, manifest.input.size, loader) for engine in engines]
        baselines = {count: median(seconds[count] for seconds in measured) for count in measured[0]}
        return ActiveProfile(manifest, engines, LatencyEstimate(baselines, loader.clock), new_engine)
    except Exception as error:  # whatever is wrong with one profile, the others can serve
        log.exception("profile %s/%s/%s is not served", folder.model, folder.version, folder.profile)
        unsuited = isinstance(error, EngineMissing)
        return FailedProfile(folder, manifest_of(folder), str(error), _summary(error, folder), unsuited)
    finally:
        give_memory_back()


def manifest_of(folder: ProfileFolder) -> Manifest | None:
    """Reads the manifest of a profile; None if it cannot be read."""
    try:
        return folder.read_manifest()
    except ManifestInvalid:
        return None


def give_memory_back() -> None:
    """Returns freed memory to the system, where glibc would keep it: 70 MB after a 33 MB model was dropped."""
    with suppress(OSError, AttributeError):  # another C library
        _c_library().malloc_trim(0)


@functools.cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


Check = Callable[[Engine], None]
"""Function that checks what an engine computes, and raises EngineWrong."""


def _golden_check(folder: ProfileFolder, manifest: Manifest, batch_size: int) -> Check:
    recorded = golden.read_golden(folder, manifest)
    if recorded is None:
        log.info("%s/%s has no golden image: what it computes is not checked", folder.model, folder.profile)
        return lambda engine: None
    return partial(_check_golden, manifest, *recorded, batch_size)


def _check_golden(
    manifest: Manifest, recorded: golden.Golden, image: NDArray[np.uint8], batch_size: int, engine: Engine
) -> None:
    for detections in golden.detect(engine.run, image, manifest, recorded.score, batch_size):
        if (wrong := recorded.disagreement(detections, golden.tolerance(manifest))) is not None:
            there = f"{recorded.runtime} on {recorded.instruction_set}"
            raise EngineWrong(f"the model does not compute what its manifest promises (recorded with {there}): {wrong}")


def _new_engine(file: ModelFile, manifest: Manifest, check: Check, loader: ProfileLoader) -> Engine:
    engine = loader.load_engine(file.read(), manifest, loader.options)
    check(engine)
    return engine


def _warm_up(engine: Engine, size: Size, loader: ProfileLoader) -> dict[int, float]:
    """Returns the seconds of every batch size; the largest runs first, so that all memory is allocated."""
    images = np.zeros((loader.options.max_batch_size, size.height, size.width, 3), np.uint8)
    return {count: _measure(engine, images[:count], loader.clock) for count in range(len(images), 0, -1)}


def _measure(engine: Engine, images: NDArray[np.uint8], clock: Callable[[], float]) -> float:
    """Returns the seconds of the quickest of several runs: whatever else the machine does only makes them slower."""
    seconds = []
    for _ in range(WARM_UP_RUNS):
        started = clock()
        engine.run(images)
        seconds.append(clock() - started)
    return min(seconds)


def _summary(error: Exception, folder: ProfileFolder) -> str:
    """Says what is wrong and what to do, without the server's paths or its runtime's words: the log has those."""
    where = f"{folder.model}/{folder.version}/{folder.profile}"
    match error:
        case ManifestInvalid():
            return f"{where}/{MANIFEST_FILE} is not a valid manifest; build the profile again"
        case FileMismatch():
            return f"a file of {where} is not what its manifest promises (SHA-256); build or copy the profile again"
        case EngineMissing():
            return f"{where}: {error}"
        case EngineWrong():
            return f"{where} does not find in its golden image, on this server, what its manifest promises; see the log"
        case EngineError():
            return f"the runtime of the server cannot use {where}/{MODEL_FILE}; see the server's log"
        case _:
            return f"{where} could not be loaded; see the server's log"
