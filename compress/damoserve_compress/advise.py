"""Advice: the profile that suits a target and its limits, and where none does, the recipe that most likely makes one.

A profile that another is at least as good as in accuracy, time and bytes, and better than in one, is dominated; the
others are the Pareto front. The recommended profile is always on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from damoserve_profiles.manifest import Manifest
from damoserve_profiles.recipe import RECIPES, Recipe, Target, read_recipe

Step = Literal["prune", "quantise", "bf16"]

_DOES: Mapping[Step, str] = {"prune": "cuts channels", "quantise": "computes in 8 bits", "bf16": "computes in bfloat16"}


@dataclass(frozen=True)
class Candidate:
    """A built profile, as it was measured."""

    profile: str
    ap: float
    """Average precision, 0..1."""
    milliseconds: float
    """Median of one image, in the preferred engine."""
    bytes: int
    steps: frozenset[Step] = frozenset()
    """The steps that the profile's recipe takes."""

    @property
    def costs(self) -> tuple[float, float, float]:
        return -self.ap, self.milliseconds, self.bytes


@dataclass(frozen=True)
class Limits:
    """The limits that a profile must keep; None stands for no limit."""

    milliseconds: float | None = None
    bytes: int | None = None
    ap: float | None = None
    """Lowest average precision, 0..1."""

    def cost_violations(self, candidate: Candidate) -> list[str]:
        """Says in words which costs exceed their limits."""
        faults = []
        if self.milliseconds is not None and candidate.milliseconds > self.milliseconds:
            faults.append(f"takes {candidate.milliseconds:g} ms, more than {self.milliseconds:g}")
        if self.bytes is not None and candidate.bytes > self.bytes:
            faults.append(f"has {candidate.bytes} bytes, more than {self.bytes}")
        return faults

    def violations(self, candidate: Candidate) -> list[str]:
        """Says in words which limits a profile breaks."""
        faults = self.cost_violations(candidate)
        if self.lacks_accuracy(candidate):
            faults.append(f"has AP {candidate.ap:.4f}, less than {self.ap:g}")
        return faults

    def lacks_accuracy(self, candidate: Candidate) -> bool:
        return self.ap is not None and candidate.ap < self.ap


@dataclass(frozen=True)
class Verdict:
    """The judgement on one profile."""

    candidate: Candidate
    faults: tuple[str, ...]
    """The limits that it breaks; none: it qualifies."""
    dominated_by: str | None
    """The most accurate profile that is better all round."""


@dataclass(frozen=True)
class Advice:
    """The recommended profile, if any qualifies, and why the others are not."""

    recommended: Candidate | None
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Suggestion:
    """A recipe that is not built yet."""

    recipe: Recipe
    reason: str


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Says whether `first` costs no more than `second` in anything, and less in something."""
    pairs = list(zip(first, second, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def on_front(costs: Sequence[Sequence[float]]) -> list[bool]:
    """Says of each point, given by its costs, whether it is on the Pareto front: no other point dominates it."""
    return [not any(dominates(other, point) for other in costs) for point in costs]


def decide(candidates: Sequence[Candidate], limits: Limits) -> Advice:
    """Recommends the most accurate profile that keeps the limits; of several such the quickest, then the smallest."""
    verdicts = tuple(
        Verdict(candidate, tuple(limits.violations(candidate)), _dominating(candidate, candidates))
        for candidate in candidates
    )
    qualified = [verdict.candidate for verdict in verdicts if not verdict.faults]
    return Advice(min(qualified, key=_preference, default=None), verdicts)


def _preference(candidate: Candidate) -> tuple[float, float, float, str]:
    return (*candidate.costs, candidate.profile)


def _dominating(candidate: Candidate, candidates: Sequence[Candidate]) -> str | None:
    better = [other for other in candidates if dominates(other.costs, candidate.costs)]
    return min(better, key=_preference).profile if better else None


def suggest(candidates: Sequence[Candidate], limits: Limits, recipes: Sequence[Recipe]) -> list[Suggestion]:
    """Suggests those of `recipes`, none of them built yet, that may keep the limits, the likeliest first.

    Judged by what they do: a recipe is likely if it does more than the profiles that are too slow or too large, and
    less than those that are not accurate enough; it is left out where it is the other way round. Where that does not
    tell, more steps come first, or fewer where a lowest accuracy or nothing else is asked for.
    """
    fewer = limits.ap is not None or (limits.milliseconds is None and limits.bytes is None)
    ranked = []
    for recipe in recipes:
        steps = recipe_steps(recipe)
        stronger, weaker, contradicted = _compare(steps, candidates, limits)
        if not contradicted:
            order = -len(stronger) - len(weaker), len(steps) if fewer else -len(steps), recipe.name
            ranked.append((order, Suggestion(recipe, _reason(steps, stronger, weaker))))
    return [suggestion for _, suggestion in sorted(ranked, key=lambda item: item[0])]


def _compare(
    steps: frozenset[Step], candidates: Sequence[Candidate], limits: Limits
) -> tuple[list[str], list[str], bool]:
    """Profiles that cost too much for fewer steps, those not accurate for more, and whether any says the opposite."""
    costly = [candidate for candidate in candidates if limits.cost_violations(candidate)]
    poor = [candidate for candidate in candidates if limits.lacks_accuracy(candidate)]
    stronger = [candidate.profile for candidate in costly if steps > candidate.steps]
    weaker = [candidate.profile for candidate in poor if steps < candidate.steps]
    contradicted = any(steps < candidate.steps for candidate in costly) or any(
        steps > candidate.steps for candidate in poor
    )
    return stronger, weaker, contradicted


def _reason(steps: frozenset[Step], stronger: Sequence[str], weaker: Sequence[str]) -> str:
    does = " and ".join(_DOES[step] for step in sorted(steps)) or "leaves the network as it is"
    reasons = []
    if stronger:
        reasons.append(f"more than {', '.join(stronger)}, which cost too much")
    if weaker:
        reasons.append(f"less than {', '.join(weaker)}, which lack accuracy")
    return f"{does}: {'; '.join(reasons)}" if reasons else does


def recipe_steps(recipe: Recipe) -> frozenset[Step]:
    """The steps that a recipe takes."""
    steps: dict[Step, bool] = {
        "prune": recipe.prune is not None,
        "quantise": recipe.quantise is not None,
        "bf16": recipe.precision is not None,
    }
    return frozenset(step for step, done in steps.items() if done)


def as_candidate(manifest: Manifest) -> Candidate:
    """A profile as its manifest describes it."""
    return Candidate(
        manifest.profile,
        manifest.accuracy.ap,
        manifest.latency.median_ms,
        manifest.model_bytes,
        recipe_steps(manifest.recipe),
    )


def bundled_recipes(model: str, target: Target, openvino: bool = False) -> list[Recipe]:
    """The recipes of `profiles/recipes` for a target, with the model's own in place of those of the same name.

    With `openvino` those for OpenVINO are among them, in place of those for ONNX Runtime. Raises RecipeError.
    """
    folders = (RECIPES, RECIPES / target, *([RECIPES / "openvino"] if openvino else []), RECIPES / model)
    recipes = [read_recipe(path) for folder in folders for path in sorted(folder.glob("*.yaml"))]
    return list({recipe.name: recipe for recipe in recipes if recipe.target == target}.values())
