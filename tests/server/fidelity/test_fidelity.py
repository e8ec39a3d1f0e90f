"""Answers that are compared with the reference profile: what is counted."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from damoserve_profiles.manifest import Agreement, Manifest
from damoserve_profiles.repository import Repository
from damoserve_server.engines.engine import Engine, EngineError, EngineOptions
from damoserve_server.engines.onnxruntime import OnnxRuntimeEngine
from tests.support.comparing import (
    QUICK,
    THREAD,
    Damage,
    Engines,
    agreement,
    boxes,
    compared,
    monitor_of,
    results,
    served,
)
from tests.support.pictures import Pictures
from tests.support.server import Samples, Serve, ServerClient


def test_a_healthy_profile_agrees(serve: Serve, pictures: Pictures) -> None:
    image = pictures.encode(pictures.draw("red", "lime", "blue", "white"))

    async def scenario(client: ServerClient) -> tuple[Samples, Samples]:
        before = await client.metrics()
        for _ in range(3):
            await client.detect(image, profile="quick")
        await client.until(compared(3))
        return before, await client.metrics()

    before, after = served(serve, scenario)
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
def test_a_damaged_profile_is_seen(serve: Serve, pictures: Pictures, damage: Damage, expected: dict[str, int]) -> None:
    async def scenario(client: ServerClient) -> Samples:
        await client.detect(pictures.red, profile="quick")
        await client.until(compared(1))
        return await client.metrics()

    after = served(serve, scenario, Engines(damage=damage).load)
    assert boxes(after) == expected


def test_agreement_falls_when_damage_begins(serve: Serve, pictures: Pictures) -> None:
    breaking = Engines()

    async def scenario(client: ServerClient) -> tuple[Samples, Samples]:
        await client.detect(pictures.red, profile="quick")
        await client.until(compared(1))
        whole = await client.metrics()
        breaking.damage = without_the_best
        await client.detect(pictures.red, profile="quick")
        await client.until(compared(2))
        return whole, await client.metrics()

    whole, damaged = served(serve, scenario, breaking.load)
    assert agreement(whole) == 1.0
    assert agreement(damaged) == pytest.approx(14 / 15)


def test_weaker_scores_are_a_shift(serve: Serve, pictures: Pictures) -> None:
    async def scenario(client: ServerClient) -> Samples:
        await client.detect(pictures.red, profile="quick")
        await client.until(compared(1))
        return await client.metrics()

    after = served(serve, scenario, Engines(damage=lambda scores, boxes: (scores * np.float32(0.75), boxes)).load)
    assert agreement(after) == 1.0
    assert after.sum("damoserve_fidelity_score_shift_sum", **QUICK) == pytest.approx(4 * 0.25)
    assert after.sum("damoserve_fidelity_score_shift_bucket", **QUICK, le="0.2") == 0
    assert after.sum("damoserve_fidelity_score_shift_bucket", **QUICK, le="0.5") == 4


def test_what_a_caller_wants_to_see_does_not_matter(serve: Serve, pictures: Pictures) -> None:
    async def scenario(client: ServerClient) -> Samples:
        await client.detect(pictures.red, profile="quick", score_threshold=0.99)
        await client.until(compared(1))
        return await client.metrics()

    after = served(serve, scenario, Engines(damage=lambda scores, boxes: (scores * np.float32(0.75), boxes)).load)
    assert boxes(after) == {"matched": 4, "missing": 0, "extra": 0}


def test_answers_of_the_reference_are_not_compared(serve: Serve, pictures: Pictures) -> None:
    watched = Engines()

    async def scenario(client: ServerClient) -> Samples:
        await client.detect(pictures.red, profile="accurate")
        await client.detect(pictures.red, profile="quick")
        await client.until(compared(1))
        return await client.metrics()

    after = served(serve, scenario, watched.load)
    assert results(after, profile="accurate") == {}
    assert watched.runs["quick"] == 0


def test_the_reference_can_be_named(serve: Serve, pictures: Pictures) -> None:
    async def scenario(client: ServerClient) -> Samples:
        await client.detect(pictures.red, profile="quick")
        await client.detect(pictures.red, profile="accurate")
        await client.until(lambda samples: results(samples, profile="accurate") == {"compared": 1})
        return await client.metrics()

    assert results(served(serve, scenario, fidelity={"share": 1, "reference": "quick"})) == {}


def test_without_a_share_there_is_no_thread_and_no_sample(serve: Serve, pictures: Pictures) -> None:
    async def scenario(client: ServerClient) -> tuple[list[str], Samples]:
        await client.detect(pictures.red, profile="quick")
        names = [thread.name for thread in threading.enumerate()]
        return names, await client.metrics()

    names, after = served(serve, scenario, fidelity={})
    assert THREAD not in names
    assert "damoserve_fidelity_images_total" not in {name for name, _ in after.series()}


def test_only_the_share_is_sampled(serve: Serve, pictures: Pictures) -> None:
    async def scenario(client: ServerClient) -> Samples:
        for _ in range(200):
            await client.detect(pictures.red, profile="quick")
        await client.until(lambda samples: not monitor_of(client)._samples)
        return await client.metrics()

    found = results(served(serve, scenario, fidelity={"share": 0.2, "kept_images": 200}))
    # 200 draws with a chance of 0.2: outside this once in a million.
    assert 12 <= sum(found.values()) <= 72


def test_a_reference_that_raises_is_counted(serve: Serve, pictures: Pictures) -> None:
    faulty = Engines()
    faulty.fault = EngineError("out of memory")

    async def scenario(client: ServerClient) -> None:
        await client.detect(pictures.red, profile="quick")
        await client.until(lambda samples: results(samples) == {"failed": 1})
        faulty.fault = None
        await client.detect(pictures.red, profile="quick")
        await client.until(compared(1))

    served(serve, scenario, faulty.load)


def test_a_reference_without_an_engine_of_its_own_is_counted(serve: Serve, pictures: Pictures) -> None:
    def load(model: bytes, manifest: Manifest, options: EngineOptions) -> Engine:
        if threading.current_thread().name == THREAD:
            raise EngineError("no memory")
        return OnnxRuntimeEngine(model, manifest, options)

    async def scenario(client: ServerClient) -> None:
        await client.detect(pictures.red, profile="quick")
        await client.until(lambda samples: results(samples) == {"failed": 1})

    served(serve, scenario, load)


@pytest.mark.parametrize("change", [{"resize": "fit"}, {"labels": ("red", "green", "sky")}])
def test_what_cannot_be_compared_is_counted(
    serve: Serve, repository: Path, new_profile: Callable[..., None], pictures: Pictures, change: dict[str, object]
) -> None:
    new_profile(repository, "other", ap=0.3, **change)

    async def scenario(client: ServerClient) -> Samples:
        await client.detect(pictures.red, profile="other")
        return await client.metrics()

    assert results(served(serve, scenario), profile="other") == {"not_comparable": 1}


def expect(repository: Any, reference: str = "accurate", f1: float = 0.97) -> None:
    folder = Repository(repository).folder("colours", 3, "quick")
    known = Agreement(reference=reference, dataset="none", images=5, f1=f1, per_class={})
    folder.write(folder.read_manifest().model_copy(update={"agreement": known}))


EXPECTED = "damoserve_fidelity_expected_agreement"


def test_the_expected_agreement_is_the_manifests(serve: Serve, repository: Path) -> None:
    expect(repository)

    async def scenario(client: ServerClient) -> tuple[Samples, Samples]:
        before = await client.metrics()
        lifecycle = client.application._lifecycle
        assert lifecycle is not None
        await lifecycle.unload_profile("colours", "quick")
        return before, await client.metrics()

    before, after = served(serve, scenario, fidelity={})
    assert before.sum(EXPECTED) == before.sum(EXPECTED, **QUICK) == 0.97
    assert EXPECTED not in {name for name, _ in after.series()}


def test_nothing_is_expected_against_another_reference(serve: Serve, repository: Path) -> None:
    expect(repository, reference="elsewhere")

    async def scenario(client: ServerClient) -> Samples:
        return await client.metrics()

    assert EXPECTED not in {name for name, _ in served(serve, scenario).series()}
