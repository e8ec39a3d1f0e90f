"""How many workers and threads there are: the choice, and how what it is made by is measured."""

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from damoserve_profiles.manifest import Manifest
from damoserve_profiles.repository import Repository
from damoserve_server.engines.engine import Engine, EngineError, EngineOptions, Outputs
from damoserve_server.errors import ShuttingDown
from damoserve_server.models.core_split import NOISE, CoreSplit, SplitTrial, choose, possible_splits
from tests.support.clock import TickingClock
from tests.support.pictures import Pictures
from tests.support.server import Serve

TWO_CORES = possible_splits(2)
counts = st.integers(1, 200)
NOTHING: Outputs = (np.zeros((1, 4, 3), np.float32), np.zeros((1, 4, 4), np.float32))


def split(workers: int, threads: int) -> CoreSplit:
    return CoreSplit(threads, workers)


@given(cores=counts)
def test_possible_splits_use_the_cores_without_sharing_any(cores: int) -> None:
    splits = possible_splits(cores)
    assert splits[0] == split(cores, 1)
    assert split(1, cores) in splits
    assert len(set(splits)) == len(splits) <= cores.bit_length() + 1
    assert all(cores - each.threads < each.workers * each.threads <= cores for each in splits)


@given(cores=counts, workers=st.none() | counts, threads=st.none() | counts)
def test_what_is_set_is_kept_and_what_is_not_fits_the_cores(
    cores: int, workers: int | None, threads: int | None
) -> None:
    for each in possible_splits(cores, workers, threads):
        assert workers in (None, each.workers)
        assert threads in (None, each.threads)
        if workers is None or threads is None:
            assert each.workers * each.threads <= max(cores, workers or 0, threads or 0)


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({"workers": 3}, (3, 2)),
        ({"threads": 4}, (2, 4)),
        ({"workers": 5, "threads": 5}, (5, 5)),
        ({"workers": 9}, (9, 1)),
    ],
)
def test_nothing_is_left_to_choose_once_one_is_set(given: dict[str, int], chosen: tuple[int, int]) -> None:
    assert possible_splits(8, **given) == [split(*chosen)]


@given(
    speeds=st.dictionaries(
        st.builds(CoreSplit, counts, counts), st.floats(0.01, 1e6, allow_subnormal=False), min_size=1, max_size=8
    )
)
def test_the_choice_is_about_the_fastest_and_no_better_liked_one_is(speeds: dict[CoreSplit, float]) -> None:
    chosen = choose(speeds)
    enough = max(speeds.values()) * (1 - NOISE)
    assert speeds[chosen] >= enough
    assert all(speeds[each] < enough for each in speeds if each < chosen)


def test_more_threads_are_taken_only_for_a_real_gain() -> None:
    one_each, one_worker = split(2, 1), split(1, 2)
    assert choose({one_each: 100.0, one_worker: 104.0}) == one_each
    assert choose({one_each: 100.0, one_worker: 106.0}) == one_worker


@dataclass
class Loader:
    """Engines of which only those of the one profile work; they remember their threads."""

    broken: str = ""

    def __post_init__(self) -> None:
        self.loaded: list[tuple[str, int]] = []

    def __call__(self, model: bytes, manifest: Manifest, options: EngineOptions) -> Engine:
        if manifest.profile == self.broken:
            raise EngineError("no")
        self.loaded.append((manifest.profile, options.threads))
        return self

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        assert images.shape == (1, 32, 64, 3)
        return NOTHING


def test_every_split_is_measured_with_as_many_engines_as_it_has_workers(pristine: Path) -> None:
    loader = Loader()
    best = SplitTrial(loader, EngineOptions(4), 9.0, TickingClock()).best(
        possible_splits(4), Repository(pristine), None
    )
    assert best in possible_splits(4)
    assert sorted(loader.loaded) == [("accurate", 1)] * 4 + [("accurate", 2)] * 2 + [("accurate", 4)]


def test_the_faster_split_is_chosen(pristine: Path) -> None:
    class Slow(Loader):
        """Two at a time hold each other up: the clock runs ten times as fast."""

        def __call__(self, model: bytes, manifest: Manifest, options: EngineOptions) -> Engine:
            return Busy(10 if options.threads == 1 else 1)

    class Busy:
        def __init__(self, seconds: int) -> None:
            self.seconds = seconds

        def run(self, images: NDArray[np.uint8]) -> Outputs:
            for _ in range(self.seconds):
                clock()
            return NOTHING

    clock = TickingClock()
    trial = SplitTrial(Slow(), EngineOptions(4), 100.0, clock)
    assert trial.best(TWO_CORES, Repository(pristine), None) == split(1, 2)


def test_a_profile_that_cannot_be_loaded_is_passed_over(pristine: Path) -> None:
    loader = Loader(broken="accurate")
    SplitTrial(loader, EngineOptions(4), 9.0, TickingClock()).best(TWO_CORES, Repository(pristine), "colours")
    assert {profile for profile, _ in loader.loaded} == {"quick"}


@pytest.mark.parametrize(("model", "seconds"), [("absent", 9.0), (None, 0.0)])
def test_the_preferred_split_is_taken_where_there_is_nothing_to_measure_by(
    pristine: Path, model: str | None, seconds: float
) -> None:
    loader = Loader()
    trial = SplitTrial(loader, EngineOptions(4), seconds, TickingClock())
    assert trial.best(TWO_CORES, Repository(pristine), model) == split(2, 1)
    assert not loader.loaded


def test_one_core_is_not_measured(pristine: Path) -> None:
    loader = Loader()
    assert SplitTrial(loader, EngineOptions(4), 9.0).best(possible_splits(1), Repository(pristine), None) == split(1, 1)
    assert not loader.loaded


def test_damaged_models_are_not_run(repository: Path) -> None:
    for path in repository.rglob("model.onnx"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    loader = Loader()
    SplitTrial(loader, EngineOptions(4), 9.0, TickingClock()).best(TWO_CORES, Repository(repository), None)
    assert not loader.loaded


def test_a_server_that_is_stopped_measures_no_further(pristine: Path) -> None:
    stop = threading.Event()
    stop.set()
    loader = Loader()
    with pytest.raises(ShuttingDown):
        SplitTrial(loader, EngineOptions(4), 9.0, TickingClock(), stop).best(TWO_CORES, Repository(pristine), None)
    assert not loader.loaded


async def test_a_server_measures_what_is_not_set(
    serve: Serve, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("damoserve_server.assembly.usable_cores", lambda: 2)
    async with serve(workers=None, split_seconds=0.01) as client:
        assert (await client.detect(pictures.red, profile="quick")).detections
        now = await client.metrics()
        assert now.sum("damoserve_workers") * now.sum("damoserve_worker_threads") == 2


async def test_a_server_shows_what_is_set(serve: Serve) -> None:
    async with serve(workers=3, threads_per_worker=2) as client:
        now = await client.metrics()
        assert (now.sum("damoserve_workers"), now.sum("damoserve_worker_threads")) == (3, 2)
