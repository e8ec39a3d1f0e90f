"""The split of the cores: how many workers there are, and how many threads each of them computes with."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles.manifest import Manifest
from damoserve_profiles.repository import ProfileFolder, Repository, RepositoryError
from damoserve_server.engines.engine import Engine, EngineLoader, EngineOptions
from damoserve_server.errors import ShuttingDown
from damoserve_server.models.loading import ModelFile, give_memory_back, manifest_of

NOISE = 0.05
"""Difference of two speeds, relative to the larger one, up to which they are the same."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, order=True)
class CoreSplit:
    """A number of workers, and of threads for each.

    Splits are ordered by preference, few threads first: they lose little time by waiting for one another.
    """

    threads: int
    workers: int

    def __str__(self) -> str:
        return f"{self.workers} x {self.threads}"


def possible_splits(cores: int, workers: int | None = None, threads: int | None = None) -> list[CoreSplit]:
    """Lists the splits that the operator's settings leave to choose from, the preferred first; never empty."""
    if workers is not None:
        return [CoreSplit(threads or max(1, cores // workers), workers)]
    if threads is not None:
        return [CoreSplit(threads, max(1, cores // threads))]
    powers = {2**exponent for exponent in range(cores.bit_length())}
    return sorted(CoreSplit(count, cores // count) for count in powers | {cores})


def choose(speeds: Mapping[CoreSplit, float]) -> CoreSplit:
    """Returns the fastest split, or a preferred one that is about as fast. `speeds` are in images a second."""
    enough = max(speeds.values()) * (1 - NOISE)
    return min(split for split, speed in speeds.items() if speed >= enough)


@dataclass(frozen=True)
class SplitTrial:
    """Measures splits with a profile of the repository."""

    load_engine: EngineLoader
    options: EngineOptions
    seconds: float
    """Seconds to measure all splits together; loading engines comes on top."""
    clock: Callable[[], float] = time.monotonic
    stop: threading.Event = field(default_factory=threading.Event)
    """Event that ends the trial once it is set."""

    def best(self, splits: Sequence[CoreSplit], repository: Repository, model: str | None) -> CoreSplit:
        """Measures the splits with the most accurate profile of `model` that can be loaded, and returns the best.

        `model` None is the first one. Where there is nothing to choose, or no profile to measure with, it is the
        preferred split. Raises ShuttingDown if stopped.
        """
        if len(splits) == 1 or not self.seconds:
            return splits[0]
        try:
            for folder, manifest in _most_accurate_first(repository, model):
                if (speeds := self._measure_all(splits, folder, manifest)) is not None:
                    figures = ", ".join(f"{split}: {speed:.1f}" for split, speed in speeds.items())
                    chosen = choose(speeds)
                    log.info("workers x threads: %s; images a second of %s: %s", chosen, manifest.profile, figures)
                    return chosen
        finally:
            give_memory_back()
        return splits[0]

    def _measure_all(
        self, splits: Sequence[CoreSplit], folder: ProfileFolder, manifest: Manifest
    ) -> dict[CoreSplit, float] | None:
        """Returns the images a second of each split, or None if the profile cannot be used."""
        try:
            model = ModelFile(folder, manifest).read()
            return {split: self._measure(split, self.seconds / len(splits), model, manifest) for split in splits}
        except ShuttingDown:
            raise
        except Exception as error:  # whatever it is, the catalogue finds it too, and tells more
            log.info("%s/%s is not measured: %s", folder.model, folder.profile, error)
            return None

    def _measure(self, split: CoreSplit, seconds: float, model: bytes, manifest: Manifest) -> float:
        if self.stop.is_set():
            raise ShuttingDown
        options = replace(self.options, threads=split.threads)
        image = np.zeros((1, manifest.input.height, manifest.input.width, 3), np.uint8)
        with ThreadPoolExecutor(split.workers) as workers:
            starting = [workers.submit(self.load_engine, model, manifest, options) for _ in range(split.workers)]
            engines = [future.result() for future in starting]
            return sum(workers.map(partial(self._images_per_second, image, self.clock() + seconds), engines))

    def _images_per_second(self, image: NDArray[np.uint8], until: float, engine: Engine) -> float:
        engine.run(image)  # the first run allocates
        runs, started = 0, self.clock()
        while not runs or self.clock() < until:
            engine.run(image)
            runs += 1
        return runs / (self.clock() - started)


def _most_accurate_first(repository: Repository, model: str | None) -> list[tuple[ProfileFolder, Manifest]]:
    """Lists the readable profiles of a model; none where the catalogue will say what is wrong with it."""
    try:
        name = model or repository.models()[0]
        folders = repository.profiles(name, repository.serving(name))
    except (RepositoryError, IndexError):  # there is none
        return []
    readable = [(folder, manifest) for folder in folders if (manifest := manifest_of(folder)) is not None]
    return sorted(readable, key=lambda profile: profile[1].accuracy.ap, reverse=True)
