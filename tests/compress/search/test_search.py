"""Mutations and the evolution that is made of them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damoserve_compress.measure.complexity import complexity
from damoserve_compress.network import VARIANTS, Structure, build_network
from damoserve_compress.search import Budget, CostModel, Search, SearchConfig, SearchError, Space, entropy_score
from damoserve_compress.search.costs import Costs
from damoserve_profiles.imaging import Size
from tests.support.compress.families import CSP, FAMILIES, MOBILE, RES

ROOT = Path(__file__).parents[3]
SIZE = Size(64, 64)
COSTS = CostModel(SIZE, 2)


def budget(costs: Costs) -> Budget:
    return Budget(costs.parameters, costs.macs, costs.depth)


def new_search(path: Path, start: Structure = RES, seed: int = 0) -> Search:
    config = SearchConfig(Space(start, multiple=8), budget(COSTS(start)), population=20, seed=seed)
    return Search(config, COSTS, path)


def state(path: Path) -> dict[str, object]:
    """What was saved, but for the time it took."""
    saved: dict[str, object] = json.loads(path.read_text())
    del saved["seconds"]
    return saved


@given(
    start=st.sampled_from([*FAMILIES, VARIANTS["P"]]),
    neck=st.sampled_from(["fixed", "scaled"]),
    seed=st.integers(0, 10**6),
)
@settings(deadline=None, max_examples=15)
def test_mutations_keep_the_rules_and_can_be_built(start: Structure, neck: str, seed: int) -> None:
    space, rng, structure = Space(start, neck="scaled" if neck == "scaled" else "fixed"), Random(seed), start
    for _ in range(12):
        structure = space.mutate(structure, rng)
        assert structure.stem_channels <= max(32, start.stem_channels)
        for stage, first in zip(structure.stages, start.stages, strict=True):
            assert stage.in_channels <= stage.out_channels
            assert stage.stride == first.stride
            assert 1 <= stage.depth <= max(4, first.depth)
            assert stage.out_channels % 16 == 0 or stage.out_channels == first.out_channels
            if stage.bottleneck != first.bottleneck:
                low, high = (1, 8) if start.family == "mobile" else (0.1, 1)
                assert low <= stage.bottleneck / stage.out_channels <= high
        if neck == "fixed":
            assert structure.neck == start.neck
    costs = COSTS(structure)
    assert (costs.parameters, costs.macs) == complexity(build_network(structure, 2), SIZE)


@pytest.mark.parametrize("start", [VARIANTS["P"], VARIANTS["M"], VARIANTS["Ns"]], ids=lambda start: start.name)
def test_every_stage_is_mutated_in_every_way_the_last_included(start: Structure) -> None:
    space, changed = Space(start, multiple=8), set()
    for seed in range(600):
        child = space.mutate(start, Random(seed))
        if child.stem_channels != start.stem_channels:
            changed.add((-1, "out_channels"))
        for index, (before, after) in enumerate(zip(start.stages, child.stages, strict=True)):
            fields = ("out_channels", "bottleneck", "depth")
            changed |= {(index, name) for name in fields if getattr(before, name) != getattr(after, name)}
    every = {(index, name) for index in range(5) for name in ("bottleneck", "depth", "out_channels")}
    assert changed == every | {(-1, "out_channels")}


def test_a_scaled_neck_keeps_its_ratio_to_the_backbone() -> None:
    start, rng = VARIANTS["P"], Random(1)
    space, structure = Space(start, neck="scaled"), start
    while structure.feature_channels[2] == start.feature_channels[2]:
        structure = space.mutate(structure, rng)
    ratio = structure.feature_channels[2] / start.feature_channels[2]
    assert structure.neck.out_channels[2] == pytest.approx(128 * ratio, abs=8)


def test_widths_cannot_be_odd() -> None:
    with pytest.raises(ValueError, match="even number, not of 5"):
        Space(RES, multiple=5)


@pytest.mark.parametrize("start", FAMILIES, ids=lambda start: start.family)
def test_a_population_is_unique_within_budget_and_the_best(start: Structure, tmp_path: Path) -> None:
    search = new_search(tmp_path / "state.json", start)
    told: list[float] = []
    search.run(1000, 1e9, lambda now: told.append(now.best.score))
    assert len(told) == 10
    assert told == sorted(told)
    scores = [member.score for member in search.population]
    assert len(scores) == len({member.structure for member in search.population}) == 20
    assert all(better >= worse for better, worse in pairwise(scores))
    for member in search.population:
        assert member.score == entropy_score(member.structure)
        assert not search.config.budget.excess(COSTS(member.structure))
    assert search.best.score > entropy_score(start)


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        new_search(tmp_path / name, seed=seed).run(300, 1e9)
    assert state(tmp_path / "a") == state(tmp_path / "b")
    assert state(tmp_path / "a")["population"] != state(tmp_path / "c")["population"]


def test_a_search_in_parts_ends_where_a_whole_one_does(tmp_path: Path) -> None:
    new_search(tmp_path / "whole").run(600, 1e9)
    for evaluations in (150, 410, 600):
        search = new_search(tmp_path / "parts")
        search.run(evaluations, 1e9)
        assert search.evaluations == evaluations
    assert state(tmp_path / "whole") == state(tmp_path / "parts")


SCRIPT = """
import sys
from pathlib import Path
from damoserve_compress.search import evolve
from tests.compress.search.test_search import new_search

evolve.SAVE_EVERY = 70
new_search(Path(sys.argv[1])).run(4000, 1e9, lambda search: print(search.evaluations, flush=True))
"""


def test_a_killed_search_ends_where_a_whole_one_does(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        while (line := process.stdout.readline()) and int(line) < 500:
            pass
        process.kill()
        process.wait()
        assert process.returncode == -9
    killed = new_search(tmp_path / "killed")
    assert 400 < killed.evaluations < 4000
    killed.run(4000, 1e9)
    new_search(tmp_path / "whole").run(4000, 1e9)
    assert state(tmp_path / "killed") == state(tmp_path / "whole")


def test_time_is_a_limit_too(tmp_path: Path) -> None:
    search = new_search(tmp_path / "state")
    search.run(10**9, 0.05)
    assert 0 < search.evaluations < 10**6
    assert new_search(tmp_path / "state").evaluations == search.evaluations


def test_what_was_saved_of_another_search_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    new_search(path).run(10, 1e9)
    with pytest.raises(SearchError, match=r"search with other seed: delete it, or choose another --out"):
        new_search(path, seed=1)
    with pytest.raises(SearchError, match="other start, budget"):
        new_search(path, start=CSP)


@pytest.mark.parametrize("damage", ["cut short", "[]", {"identity": 3}, {"population": []}, {"population": [{}]}])
def test_what_was_damaged_is_told(damage: str | dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    new_search(path).run(10, 1e9)
    saved = path.read_text()
    texts = {"cut short": saved[:-50], "[]": "[]"}
    path.write_text(texts[damage] if isinstance(damage, str) else json.dumps(json.loads(saved) | damage))
    with pytest.raises(SearchError, match="holds no search: delete it to begin anew"):
        new_search(path)


def test_a_start_over_budget_is_refused(tmp_path: Path) -> None:
    costs = COSTS(MOBILE)
    config = SearchConfig(Space(MOBILE), replace(budget(costs), macs=costs.macs - 1))
    with pytest.raises(SearchError, match=r"tiny-mobile is over budget: macs \d+ above \d+; start from a smaller"):
        Search(config, COSTS, tmp_path / "state.json")
