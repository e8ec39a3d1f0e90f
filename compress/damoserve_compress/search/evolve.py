"""Steady-state evolution of structures under a budget.

SearchError (ValueError)   the start is over budget, or what was saved is damaged or of another search

One structure of the population is mutated at a time. A child that is new and within budget joins the population, of
which the best by entropy score are kept. Each step draws from a generator of its own, seeded by the search's seed and
the step's number: a search that was killed goes on from what it last saved and ends where it would have ended.
"""

from __future__ import annotations

import json
import time
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from damoserve_compress.network.structures import (
    Structure,
    StructureError,
    structure_from_dict,
    structure_to_dict,
)
from damoserve_compress.search.costs import Budget, CostModel
from damoserve_compress.search.mutate import Space
from damoserve_compress.search.score import WEIGHTS, entropy_score
from damoserve_profiles.files import replace_text

SAVE_EVERY: Final = 2000


class SearchError(ValueError):
    """The search cannot be started or continued; the message says what to change."""


@dataclass(frozen=True)
class SearchConfig:
    """Settings that the result depends on, besides the costs and the number of steps."""

    space: Space
    budget: Budget
    population: int = 512
    seed: int = 0
    weights: Sequence[float] = WEIGHTS


@dataclass(frozen=True)
class ScoredStructure:
    """A structure within budget and its entropy score."""

    score: float
    structure: Structure


def check_start(start: Structure, budget: Budget, costs: CostModel) -> None:
    """Raises SearchError where a structure is over budget."""
    if excess := budget.excess(costs(start)):
        raise SearchError(f"{start.name} is over budget: {excess}; start from a smaller reference, or allow more")


class Search:
    """A search, as far as it has come. `path` is where it is saved, and taken up again if it was saved before."""

    def __init__(self, config: SearchConfig, costs: CostModel, path: Path) -> None:
        """Raises SearchError where the start is over budget, or what `path` holds is not of this search."""
        self.config = config
        self.costs = costs
        self.evaluations = 0
        """Steps done, those that led nowhere included."""
        self.seconds = 0.0
        self._path = path
        start = config.space.start
        check_start(start, config.budget, costs)
        self.population: list[ScoredStructure] = []
        """Unique, best first."""
        self._members: set[Structure] = set()
        self._add(self._scored(start))
        if path.exists():
            self._restore()

    @property
    def best(self) -> ScoredStructure:
        return self.population[0]

    def run(self, evaluations: int, seconds: float, progress: Callable[[Search], None] = lambda search: None) -> None:
        """Goes on until so many steps are done in all, or for so long; saves, and tells `progress`, time and again."""
        started, before = time.monotonic(), self.seconds
        while self.evaluations < evaluations and self.seconds - before < seconds:
            self._step()
            if self.evaluations % 100 == 0 or self.evaluations == evaluations:
                self.seconds = before + time.monotonic() - started
                progress(self)
            if self.evaluations % SAVE_EVERY == 0:
                self._save()
        self._save()

    def _step(self) -> None:
        rng = Random(f"{self.config.seed} {self.evaluations}")
        child = self.config.space.mutate(rng.choice(self.population).structure, rng)
        self.evaluations += 1
        if child in self._members:
            return
        candidate = self._scored(child)
        full = len(self.population) == self.config.population
        if full and candidate.score <= self.population[-1].score:
            return
        if not self.config.budget.excess(self.costs(child)):
            self._add(candidate)

    def _scored(self, structure: Structure) -> ScoredStructure:
        return ScoredStructure(entropy_score(structure, self.config.weights), structure)

    def _add(self, candidate: ScoredStructure) -> None:
        insort(self.population, candidate, key=lambda member: -member.score)
        self._members.add(candidate.structure)
        for worst in self.population[self.config.population :]:
            self._members.remove(worst.structure)
        del self.population[self.config.population :]

    def identity(self) -> dict[str, Any]:
        """Gives all that the result depends on but the number of steps, as plain values."""
        space, latency = self.config.space, self.costs.latency
        return {
            "start": structure_to_dict(space.start),
            "space": {"multiple": space.multiple, "max_depth": space.max_depth, "neck": space.neck},
            "budget": self.config.budget.limits(),
            "population": self.config.population,
            "seed": self.config.seed,
            "weights": list(self.config.weights),
            "input": [self.costs.size.width, self.costs.size.height],
            "classes": self.costs.num_classes,
            "latencies": [latency.table.digest(), latency.factor] if latency else None,
        }

    def _save(self) -> None:
        state = {
            "identity": self.identity(),
            "evaluations": self.evaluations,
            "seconds": round(self.seconds, 1),
            "population": [structure_to_dict(member.structure) for member in self.population],
        }
        replace_text(self._path, json.dumps(state) + "\n")

    def _restore(self) -> None:
        try:
            state = json.loads(self._path.read_text(encoding="utf-8"))
            identity = dict(state["identity"])
            best, *others = map(structure_from_dict, state["population"])
            evaluations, seconds = int(state["evaluations"]), float(state["seconds"])
        except (OSError, ValueError, KeyError, TypeError, StructureError) as error:
            raise SearchError(f"{self._path} holds no search: delete it to begin anew ({error})") from error
        own = self.identity()
        if other := [name for name in own if identity.get(name) != own[name]]:
            raise SearchError(
                f"{self._path} is of a search with other {', '.join(other)}: delete it, or choose another --out"
            )
        self.population, self.evaluations, self.seconds = [], evaluations, seconds
        self._members.clear()
        for structure in (best, *others):
            self._add(self._scored(structure))
