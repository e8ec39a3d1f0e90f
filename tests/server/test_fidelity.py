"""Answers that are compared with the reference profile while nobody waits, in a real server in this process."""

import asyncio
import gc
import threading
import time
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from damoserve_profiles.manifest import Agreement
from damoserve_profiles.repository import Repository
from damoserve_server.engines import EngineError, EngineOptions, Interruptible
from damoserve_server.engines.onnxruntime import OnnxRuntimeEngine
from damoserve_server.latency import WINDOW

PATIENCE = 20.0
THREAD = "fidelity"
ALL = {"fidelity": {"share": 1}}
QUICK = {"model": "colours", "profile": "quick"}


def results(samples: Any, **labels: str) -> dict[str, float]:
    names = ("compared", "dropped_busy", "dropped_unloaded", "not_comparable", "failed")
    labels = QUICK | labels
    return {
        name: count
        for name in names
        if (count := samples.sum("damoserve_fidelity_images_total", **labels, result=name))
    }


def boxes(samples: Any, **labels: str) -> dict[str, float]:
    return {
        name: samples.sum("damoserve_fidelity_boxes_total", **(QUICK | labels), result=name)
        for name in ("matched", "missing", "extra")
    }


def agreement(samples: Any) -> float:
    found = boxes(samples)
    return 2 * found["matched"] / (2 * found["matched"] + found["missing"] + found["extra"])


def compared(count: int) -> Any:
    return lambda samples: results(samples).get("compared") == count


class Engines:
    """Loads engines and watches those that the monitor runs.

    `damage` is done to the outputs of the profile `quick`. While `shut`, the runs of the monitor wait; they end early
    when they are interrupted, where `interruptible`.
    """

    def __init__(self, *, interruptible: bool = True, damage: Any = lambda scores, boxes: (scores, boxes)) -> None:
        self.interruptible = interruptible
        self.damage = damage
        self.runs: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.opened.set()
        self.fault: Exception | None = None

    def load(self, model: bytes, manifest: Any, options: Any) -> Any:
        kind = InterruptibleEngine if self.interruptible else WatchedEngine
        return kind(OnnxRuntimeEngine(model, manifest, options), manifest.profile, self, threading.Event())


@dataclass(eq=False)
class WatchedEngine:
    engine: OnnxRuntimeEngine
    profile: str
    engines: Engines
    interrupted: threading.Event

    def run(self, images: Any) -> Any:
        if threading.current_thread().name == THREAD:
            self.watched()
        outputs = self.engine.run(images)
        return self.engines.damage(*outputs) if self.profile == "quick" else outputs

    def watched(self) -> None:
        engines = self.engines
        engines.runs[self.profile] += 1
        engines.entered.set()
        until = time.monotonic() + PATIENCE
        while not (engines.opened.is_set() or self.interrupted.is_set()):
            assert time.monotonic() < until
            self.interrupted.wait(0.001)
        engines.ends["interrupted" if self.interrupted.is_set() else "ran"] += 1
        if self.interrupted.is_set():
            raise EngineError("interrupted")
        if engines.fault is not None:
            raise engines.fault


class InterruptibleEngine(WatchedEngine):
    interruptible = True

    def interrupt(self) -> None:
        self.interrupted.set()

    def resume(self) -> None:
        self.interrupted.clear()


@pytest.fixture
def engines() -> Any:
    made: list[Engines] = []

    def make(**options: Any) -> Engines:
        made.append(Engines(**options))
        return made[-1]

    yield make
    for each in made:
        each.opened.set()


async def entered(engines: Engines) -> None:
    assert await asyncio.to_thread(engines.entered.wait, PATIENCE)


def monitor_of(client: Any) -> Any:
    return client.application._detector.result().fidelity


@pytest.fixture
def served(serve):
    """Runs a scenario with a client of a server that compares every answer."""

    def run(scenario: Any, load_engine: Any = OnnxRuntimeEngine, **settings: Any) -> Any:
        async def main() -> Any:
            async with serve(load_engine, **(ALL | settings)) as client:
                return await scenario(client)

        return asyncio.run(main())

    return run


def test_a_healthy_profile_agrees(served, pictures):
    image = pictures.encode(pictures.draw("red", "lime", "blue", "white"))

    async def scenario(client):
        before = await client.metrics()
        for _ in range(3):
            await client.detect(image, profile="quick")
        await client.until(compared(3))
        return before, await client.metrics()

    before, after = served(scenario)
    assert results(before) == {}
    assert boxes(before) == {"matched": 0, "missing": 0, "extra": 0}
    assert boxes(after) == {"matched": 18, "missing": 0, "extra": 0}
    assert boxes(after, label="red") == {"matched": 6, "missing": 0, "extra": 0}
    assert agreement(after) == 1.0
    assert after.sum("damoserve_fidelity_score_shift_count", **QUICK) == 18
    assert after.sum("damoserve_fidelity_score_shift_sum", **QUICK) == 0


def without_the_best(scores: Any, boxes: Any) -> Any:
    scores = scores.copy()
    scores[:, 0] = 0
    return scores, boxes


def moved(scores: Any, boxes: Any) -> Any:
    return scores, boxes + np.float32(30)


def other_class(scores: Any, boxes: Any) -> Any:
    return np.roll(scores, 1, axis=2), boxes


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (without_the_best, {"matched": 3, "missing": 1, "extra": 0}),
        (moved, {"matched": 0, "missing": 4, "extra": 2}),  # two of the four are moved out of the image
        (other_class, {"matched": 0, "missing": 4, "extra": 4}),
    ],
)
def test_a_damaged_profile_is_seen(served, engines, pictures, damage, expected):
    async def scenario(client):
        await client.detect(pictures.red, profile="quick")
        await client.until(compared(1))
        return await client.metrics()

    after = served(scenario, engines(damage=damage).load)
    assert boxes(after) == expected


def test_agreement_falls_when_damage_begins(served, engines, pictures):
    breaking = engines()

    async def scenario(client):
        await client.detect(pictures.red, profile="quick")
        await client.until(compared(1))
        whole = await client.metrics()
        breaking.damage = without_the_best
        await client.detect(pictures.red, profile="quick")
        await client.until(compared(2))
        return whole, await client.metrics()

    whole, damaged = served(scenario, breaking.load)
    assert agreement(whole) == 1.0
    assert agreement(damaged) == pytest.approx(14 / 15)


def test_weaker_scores_are_a_shift(served, engines, pictures):
    async def scenario(client):
        await client.detect(pictures.red, profile="quick")
        await client.until(compared(1))
        return await client.metrics()

    after = served(scenario, engines(damage=lambda scores, boxes: (scores * np.float32(0.75), boxes)).load)
    assert agreement(after) == 1.0
    assert after.sum("damoserve_fidelity_score_shift_sum", **QUICK) == pytest.approx(4 * 0.25)
    assert after.sum("damoserve_fidelity_score_shift_bucket", **QUICK, le="0.2") == 0
    assert after.sum("damoserve_fidelity_score_shift_bucket", **QUICK, le="0.5") == 4


def test_what_a_caller_wants_to_see_does_not_matter(served, engines, pictures):
    async def scenario(client):
        await client.detect(pictures.red, profile="quick", score_threshold=0.99)
        await client.until(compared(1))
        return await client.metrics()

    after = served(scenario, engines(damage=lambda scores, boxes: (scores * np.float32(0.75), boxes)).load)
    assert boxes(after) == {"matched": 4, "missing": 0, "extra": 0}


def test_answers_of_the_reference_are_not_compared(served, engines, pictures):
    watched = engines()

    async def scenario(client):
        await client.detect(pictures.red, profile="accurate")
        await client.detect(pictures.red, profile="quick")
        await client.until(compared(1))
        return await client.metrics()

    after = served(scenario, watched.load)
    assert results(after, profile="accurate") == {}
    assert watched.runs["quick"] == 0


def test_the_reference_can_be_named(served, pictures):
    async def scenario(client):
        await client.detect(pictures.red, profile="quick")
        await client.detect(pictures.red, profile="accurate")
        await client.until(lambda samples: results(samples, profile="accurate") == {"compared": 1})
        return await client.metrics()

    assert results(served(scenario, fidelity={"share": 1, "reference": "quick"})) == {}


def test_without_a_share_there_is_no_thread_and_no_sample(served, pictures):
    async def scenario(client):
        await client.detect(pictures.red, profile="quick")
        names = [thread.name for thread in threading.enumerate()]
        return names, await client.metrics()

    names, after = served(scenario, fidelity={})
    assert THREAD not in names
    assert results(after) == {}


def test_only_the_share_is_sampled(served, pictures):
    async def scenario(client):
        for _ in range(200):
            await client.detect(pictures.red, profile="quick")
        await client.until(lambda samples: not monitor_of(client)._samples)
        return await client.metrics()

    found = results(served(scenario, fidelity={"share": 0.2, "kept_images": 200}))
    # 200 draws with a chance of 0.2: outside this once in a million.
    assert 12 <= sum(found.values()) <= 72


def test_a_full_store_drops_and_counts(served, engines, pictures):
    shut = engines()
    shut.opened.clear()

    async def scenario(client):
        await client.detect(pictures.red, profile="quick")
        await entered(shut)
        for _ in range(5):
            await client.detect(pictures.red, profile="quick")
        full = await client.metrics()
        shut.opened.set()
        await client.until(compared(3))
        return full, await client.metrics()

    full, after = served(scenario, shut.load, fidelity={"share": 1, "kept_images": 3})
    assert results(full) == {"dropped_busy": 3}
    assert results(after) == {"compared": 3, "dropped_busy": 3}


def test_nothing_is_run_while_requests_are_there(served, engines, pictures, valve):
    watched = engines()

    def load(model, manifest, options):
        engine = watched.load(model, manifest, options)
        usual = engine.run

        def run(images):
            if threading.current_thread().name.startswith("worker"):
                valve.pass_through(len(images))
            return usual(images)

        engine.run = run
        return engine

    async def scenario(client):
        await client.detect(pictures.red, profile="quick")
        valve.shut()
        waiting = [asyncio.ensure_future(client.detect(pictures.red, profile="quick")) for _ in range(3)]
        await valve.entered()
        monitor = monitor_of(client)
        with monitor._changed:
            began = monitor._wait() is not None
        valve.open()
        await asyncio.gather(*waiting)
        await client.until(compared(4))
        return began

    assert not served(scenario, load)
    assert watched.ends["ran"] == 4


def test_an_arrival_interrupts_the_run_and_the_sample_is_tried_again(served, engines, pictures):
    shut = engines()
    shut.opened.clear()

    async def scenario(client):
        await client.detect(pictures.red, profile="quick")
        await entered(shut)
        assert monitor_of(client)._running is not None
        await client.detect(pictures.red, profile="accurate")  # answered, though the run is held up
        interrupted = shut.ends["interrupted"]
        shut.opened.set()
        await client.until(compared(1))
        return interrupted

    assert served(scenario, shut.load) >= 1
    assert shut.ends["ran"] == 1


def test_what_cannot_be_interrupted_runs_only_after_a_longer_quiet(served, engines, pictures):
    watched = engines(interruptible=False)

    async def scenario(client):
        monitor = monitor_of(client)
        reference = client.application._detector.result().catalogue.model("colours").find("accurate")
        reference.latency.observe(PATIENCE)  # a run is believed to take so long: nothing is quiet enough
        await client.detect(pictures.red, profile="quick")
        with monitor._changed:
            assert monitor._wait() > PATIENCE
        for _ in range(WINDOW):
            reference.latency.observe(0.001)
        await client.detect(pictures.red, profile="quick")
        await client.until(compared(2))

    served(scenario, watched.load)


def test_after_a_run_there_is_a_pause_of_nine_times_its_length(served, engines, pictures):
    shut = engines()
    shut.opened.clear()

    async def scenario(client):
        await client.detect(pictures.red, profile="quick")
        await entered(shut)
        began = time.monotonic()
        await client.metrics()
        ended = time.monotonic()
        shut.opened.set()
        await client.until(compared(1))
        return monitor_of(client)._rested_at - ended, ended - began

    pause, ran = served(scenario, shut.load)
    assert pause >= 9 * ran


def test_a_reference_that_raises_is_counted(served, engines, pictures):
    faulty = engines()
    faulty.fault = EngineError("out of memory")

    async def scenario(client):
        await client.detect(pictures.red, profile="quick")
        await client.until(lambda samples: results(samples) == {"failed": 1})
        faulty.fault = None
        await client.detect(pictures.red, profile="quick")
        await client.until(compared(1))

    served(scenario, faulty.load)


def test_a_reference_without_an_engine_of_its_own_is_counted(served, pictures):
    def load(model, manifest, options):
        if threading.current_thread().name == THREAD:
            raise EngineError("no memory")
        return OnnxRuntimeEngine(model, manifest, options)

    async def scenario(client):
        await client.detect(pictures.red, profile="quick")
        await client.until(lambda samples: results(samples) == {"failed": 1})

    served(scenario, load)


@pytest.mark.parametrize("change", [{"resize": "fit"}, {"labels": ("red", "green", "sky")}])
def test_what_cannot_be_compared_is_counted(served, repository, new_profile, pictures, change):
    new_profile(repository, "other", ap=0.3, **change)

    async def scenario(client):
        await client.detect(pictures.red, profile="other")
        return await client.metrics()

    assert results(served(scenario), profile="other") == {"not_comparable": 1}


def test_stopping_does_not_wait_for_samples(serve, engines, pictures):
    shut = engines()
    shut.opened.clear()

    async def scenario():
        async with serve(shut.load, **ALL) as client:
            for _ in range(4):
                await client.detect(pictures.red, profile="quick")
            await entered(shut)
            thread = monitor_of(client)._thread
            started = time.monotonic()
        return thread.is_alive(), time.monotonic() - started

    alive, seconds = asyncio.run(scenario())
    assert not alive
    assert seconds < PATIENCE / 2


async def freed(reference: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while reference() is not None:
            gc.collect()
            await asyncio.sleep(0)


@pytest.mark.parametrize("profile", ["quick", "accurate"])
def test_unloading_drops_the_samples_and_frees_the_profile(served, engines, pictures, profile):
    shut = engines()
    shut.opened.clear()

    async def scenario(client):
        for _ in range(3):
            await client.detect(pictures.red, profile="quick")
        await entered(shut)
        model = client.application._detector.result().catalogue.model("colours")
        gone = weakref.ref(model.find(profile))
        del model
        await client.application._lifecycle.unload_profile("colours", profile)
        await freed(gone)
        return await client.metrics()

    assert results(served(scenario, shut.load)) == {"dropped_unloaded": 3}


def test_a_new_version_drops_the_samples_and_frees_the_old_one(served, engines, repository, new_profile, pictures):
    shut = engines()
    shut.opened.clear()

    async def scenario(client):
        await client.detect(pictures.red, profile="quick")
        await entered(shut)
        old = [weakref.ref(profile) for profile in client.application._detector.result().catalogue.active()]
        for profile, ap in (("accurate", 0.6), ("quick", 0.4)):
            new_profile(repository, profile, ap, version=4)
        await client.application._lifecycle.reload("colours")
        for each in old:
            await freed(each)
        shut.opened.set()
        await client.detect(pictures.red, profile="quick")
        await client.until(compared(1))
        return await client.metrics()

    assert results(served(scenario, shut.load)) == {"dropped_unloaded": 1, "compared": 1}


def expect(repository: Any, reference: str = "accurate", f1: float = 0.97) -> None:
    folder = Repository(repository).folder("colours", 3, "quick")
    known = Agreement(reference=reference, dataset="none", images=5, f1=f1, per_class={})
    folder.write(folder.read_manifest().model_copy(update={"agreement": known}))


EXPECTED = "damoserve_fidelity_expected_agreement"


def test_the_expected_agreement_is_the_manifests(served, repository):
    expect(repository)

    async def scenario(client):
        before = await client.metrics()
        await client.application._lifecycle.unload_profile("colours", "quick")
        return before, await client.metrics()

    before, after = served(scenario, fidelity={})
    assert before.sum(EXPECTED) == before.sum(EXPECTED, **QUICK) == 0.97
    assert EXPECTED not in {name for name, _ in after.series()}


def test_nothing_is_expected_against_another_reference(served, repository):
    expect(repository, reference="elsewhere")

    async def scenario(client):
        return await client.metrics()

    assert EXPECTED not in {name for name, _ in served(scenario).series()}


def test_onnx_runtime_can_be_interrupted(pristine):
    folder = Repository(pristine).folder("colours", 3, "quick")
    engine = OnnxRuntimeEngine(folder.model_path.read_bytes(), folder.read_manifest(), EngineOptions(1))
    assert isinstance(engine, Interruptible)
    assert engine.interruptible
    images = np.zeros((1, 32, 64, 3), np.uint8)
    engine.interrupt()
    with pytest.raises(Exception, match="terminate"):
        engine.run(images)
    engine.resume()
    assert engine.run(images)[0].shape == (1, 4, 3)
