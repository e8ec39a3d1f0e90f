"""The choice of a profile under limits, and of the recipe that may make one."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from damoserve_compress.advise import (
    Candidate,
    Limits,
    Step,
    bundled_recipes,
    decide,
    dominates,
    on_front,
    recipe_steps,
    suggest,
)
from damoserve_profiles.recipe import FineTune, Prune, Quantise, Recipe, Target

# Few different values, so that ties and points on the limit are common.
AP = st.integers(0, 6).map(lambda value: value / 6)
COST = st.integers(1, 6)
STEPS: list[Step] = ["prune", "quantise", "bf16"]
CANDIDATES = st.lists(
    st.tuples(AP, COST, COST, st.sets(st.sampled_from(STEPS))).map(
        lambda drawn: Candidate("", drawn[0], float(drawn[1]), drawn[2], frozenset(drawn[3]))
    ),
    max_size=8,
).map(lambda drawn: [replace(candidate, profile=f"p{index}") for index, candidate in enumerate(drawn)])
LIMITS = st.builds(Limits, st.none() | COST.map(float), st.none() | COST, st.none() | AP)

FLOAT = Recipe(name="fp32")
INT8 = Recipe(name="int8", quantise=Quantise(calibration_images=8))
PRUNED = Recipe(name="pruned", prune=Prune(macs=0.4, fine_tune=FineTune(epochs=1, learning_rate=1e-3)))
BOTH = Recipe(name="both", prune=PRUNED.prune, quantise=INT8.quantise)


def keeps(candidate: Candidate, limits: Limits) -> bool:
    return (
        (limits.milliseconds is None or candidate.milliseconds <= limits.milliseconds)
        and (limits.bytes is None or candidate.bytes <= limits.bytes)
        and (limits.ap is None or candidate.ap >= limits.ap)
    )


@given(CANDIDATES, LIMITS)
def test_the_most_accurate_that_keeps_all_limits_is_recommended(candidates: list[Candidate], limits: Limits) -> None:
    advice = decide(candidates, limits)
    qualified = [candidate for candidate in candidates if keeps(candidate, limits)]
    assert (advice.recommended is None) == (not qualified)
    if advice.recommended is not None:
        assert keeps(advice.recommended, limits)
        best = max(candidate.ap for candidate in qualified)
        assert advice.recommended.ap == best
        assert advice.recommended.milliseconds == min(c.milliseconds for c in qualified if c.ap == best)


@given(CANDIDATES, LIMITS)
def test_what_is_recommended_is_on_the_front(candidates: list[Candidate], limits: Limits) -> None:
    recommended = decide(candidates, limits).recommended
    if recommended is not None:
        front = on_front([candidate.costs for candidate in candidates])
        assert front[candidates.index(recommended)]


@given(CANDIDATES, LIMITS, st.sampled_from(["milliseconds", "bytes", "ap"]), st.integers(0, 6))
def test_a_looser_limit_never_lowers_the_accuracy(
    candidates: list[Candidate], limits: Limits, which: str, by: int
) -> None:
    value = getattr(limits, which)
    looser = None if value is None or by == 0 else value - by / 6 if which == "ap" else value + by
    strict, loose = decide(candidates, limits), decide(candidates, replace(limits, **{which: looser}))
    if strict.recommended is not None:
        assert loose.recommended is not None
        assert loose.recommended.ap >= strict.recommended.ap


@given(CANDIDATES, LIMITS)
def test_every_profile_gets_a_verdict(candidates: list[Candidate], limits: Limits) -> None:
    by_name = {candidate.profile: candidate for candidate in candidates}
    verdicts = decide(candidates, limits).verdicts
    assert [verdict.candidate for verdict in verdicts] == candidates
    for verdict, on in zip(verdicts, on_front([candidate.costs for candidate in candidates]), strict=True):
        assert (not verdict.faults) == keeps(verdict.candidate, limits)
        assert (verdict.dominated_by is None) == on
        if verdict.dominated_by is not None:
            assert dominates(by_name[verdict.dominated_by].costs, verdict.candidate.costs)


def test_the_faults_name_the_limit_and_what_there_is() -> None:
    [verdict] = decide([Candidate("fp32", 0.6, 45.0, 3000)], Limits(10, 2000, 0.65)).verdicts
    assert verdict.faults == (
        "takes 45 ms, more than 10",
        "has 3000 bytes, more than 2000",
        "has AP 0.6000, less than 0.65",
    )


def names(candidates: Sequence[Candidate], limits: Limits, recipes: Sequence[Recipe]) -> list[str]:
    return [suggestion.recipe.name for suggestion in suggest(candidates, limits, recipes)]


def built(recipe: Recipe, ap: float, milliseconds: float) -> Candidate:
    return Candidate(recipe.name, ap, milliseconds, 1000, recipe_steps(recipe))


def test_what_does_more_is_suggested_where_profiles_are_too_slow() -> None:
    slow = [built(INT8, 0.6, 20)]
    assert names(slow, Limits(milliseconds=10), [FLOAT, PRUNED, BOTH]) == ["both", "pruned"]
    [likeliest, _] = suggest(slow, Limits(milliseconds=10), [FLOAT, PRUNED, BOTH])
    assert likeliest.reason == "cuts channels and computes in 8 bits: more than int8, which cost too much"


def test_what_does_less_is_suggested_where_profiles_are_not_accurate() -> None:
    poor = [built(BOTH, 0.5, 5)]
    assert names(poor, Limits(ap=0.6), [FLOAT, INT8, PRUNED]) == ["fp32", "int8", "pruned"]


def test_what_is_between_is_suggested_where_one_is_slow_and_the_other_not_accurate() -> None:
    limits = Limits(milliseconds=10, ap=0.6)
    known = [built(FLOAT, 0.7, 45), built(BOTH, 0.5, 5)]
    assert names(known, limits, [INT8, PRUNED]) == ["int8", "pruned"]
    # Two profiles that cost too much and one that lacks accuracy, all of them with fewer or more steps.
    assert names([built(INT8, 0.7, 20), built(BOTH, 0.5, 5)], limits, [FLOAT]) == []


def test_without_profiles_the_limits_alone_tell_where_to_begin() -> None:
    recipes = [FLOAT, INT8, BOTH]
    assert names([], Limits(milliseconds=10), recipes) == ["both", "int8", "fp32"]
    assert names([], Limits(ap=0.6), recipes) == ["fp32", "int8", "both"]


@given(CANDIDATES, LIMITS)
def test_nothing_is_suggested_that_a_profile_speaks_against(candidates: list[Candidate], limits: Limits) -> None:
    for suggestion in suggest(candidates, limits, [FLOAT, INT8, PRUNED, BOTH]):
        steps = recipe_steps(suggestion.recipe)
        for candidate in candidates:
            assert not (limits.cost_violations(candidate) and steps < candidate.steps)
            assert not (limits.lacks_accuracy(candidate) and steps > candidate.steps)


def test_a_model_has_its_own_recipes_in_place_of_the_common_ones() -> None:
    own, common = ({r.name: r for r in bundled_recipes(model, "cpu")} for model in ("blood-cells", "another"))
    assert own.keys() >= {"fp32", "int8", "pruned", "int8+pruned"}
    assert own.keys() == common.keys()
    assert own["pruned"].prune is not None
    assert own["pruned"].prune.network is not None
    assert common["pruned"].prune is not None
    assert common["pruned"].prune.network is None


def test_recipes_for_openvino_take_the_place_of_the_common_ones_on_request() -> None:
    found = {recipe.name: recipe for recipe in bundled_recipes("another", "cpu", openvino=True)}
    assert found["bf16"].precision == "bf16"
    assert found["int8"].quantise is not None
    assert found["int8"].quantise.engine == "openvino"
    assert "bf16" not in {recipe.name for recipe in bundled_recipes("another", "cpu")}
    for target in ("gpu", "npu"):  # which have recipes of the same names
        assert bundled_recipes("another", target, openvino=True) == bundled_recipes("another", target)
    [own] = [recipe for recipe in bundled_recipes("blood-cells", "cpu", openvino=True) if recipe.name == "int8"]
    assert own.quantise is not None
    assert own.quantise.engine == "onnxruntime"


@pytest.mark.parametrize("target", ["cpu", "gpu", "npu"])
def test_recipes_are_of_the_target(target: Target) -> None:
    assert all(recipe.target == target for recipe in bundled_recipes("blood-cells", target))
