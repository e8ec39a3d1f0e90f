"""The server's policy decides as a plain reading of its definition does."""

from collections import Counter
from random import Random
from typing import Any

import pytest

from damoserve_server.scheduling.deadline import DeadlinePolicy
from damoserve_server.scheduling.policy import Cost, Decision, Pause, QueueState, Requirements
from damoserve_server.scheduling.scheduler import Ticket
from tests.support.plain_policy import Plain

NOW = 100.0
SEEDS = range(1500)


GRID = 1 / 32


class Smooth(Random):
    """Draws numbers of which no two are equal."""

    lengths = (1, 4, 4)
    rates: tuple[float, ...] = (0.0, 0.0, 1.0, 5.0, 60.0)


class Coarse(Random):
    """Draws such that much falls on the same moment, and that floats hold it exactly: bounds are met, not passed."""

    lengths = (1, 2, 2)  # a third of a second has no exact float
    rates: tuple[float, ...] = (0.0,)

    def uniform(self, a: float, b: float) -> float:
        return round(super().uniform(a, b) / GRID) * GRID


Numbers = Smooth | Coarse


def ladder(draw: Numbers) -> dict[str, Cost]:
    """Profiles of any time for any batch, in any order."""
    costs = {}
    for number in range(draw.choice([1, 2, 3, 4, 4, 4])):
        seconds = [max(draw.uniform(0.01, 0.3), GRID)]
        growth = draw.choice([0.2, 1.2])
        for _ in range(draw.choice(draw.lengths) - 1):
            seconds.append(seconds[-1] + draw.uniform(0.0, growth * seconds[0]))
        costs[f"p{number}"] = Cost(0.3 + 0.4 * draw.random(), tuple(seconds))
    return costs


def any_state(draw: Numbers) -> QueueState[str, Ticket[str, Any]]:
    costs = ladder(draw)
    count = draw.randint(1, 8)
    patience = (
        draw.choice([0.3, 1.0, 3.0]) * sum(cost.seconds_per_image for cost in costs.values()) * count / len(costs)
    )
    tickets: list[Ticket[str, Any]] = []
    for _ in range(count):
        allowed = tuple(draw.sample(list(costs), draw.randint(1, len(costs))))
        due = NOW + draw.uniform(-0.05 * patience, patience)
        deadline = max(due, NOW) + draw.choice([0.0, draw.uniform(0.0, patience)])
        requirements = Requirements(allowed, deadline, due, NOW - draw.uniform(0.0, 0.5), draw.randint(1, 5))
        ready = draw.random() < 0.7
        ready_at = NOW + (draw.uniform(-0.05, 0.0) if ready else draw.uniform(-0.01, 0.05))
        tickets.append(Ticket(requirements, ready_at, ready=ready))
    return QueueState(
        NOW,
        tickets,
        costs,
        free=draw.choice([1, 1, 1, 2, 3]),
        busy=tuple(draw.uniform(0.0, 0.5) for _ in range(draw.choice([0, 0, 1, 2]))),
        rate=draw.choice(draw.rates) * draw.random(),
        budget=draw.uniform(0.0, 2.0 * patience),
        last_accuracy=draw.choice([1.0, 0.0, 0.3 + 0.4 * draw.random()]),
    )


def told(decision: Decision[str, Ticket[str, Any]]) -> object:
    """Comparable, but for the moment of a pause."""
    if decision is None or isinstance(decision, Pause):
        return type(decision)
    return decision.profile, decision.tickets


@pytest.mark.parametrize("max_wait", [0.005, 0.5])
@pytest.mark.parametrize("numbers", [Smooth, Coarse])
def test_it_decides_as_a_plain_reading_of_its_definition(numbers: type[Numbers], max_wait: float) -> None:
    kinds: Counter[type[object]] = Counter()
    for seed in SEEDS:
        state = any_state(numbers(seed))
        decision, expected = DeadlinePolicy(max_wait).decide(state), Plain(max_wait).decide(state)
        assert told(decision) == told(expected), f"seed {seed}"
        if isinstance(decision, Pause):
            assert isinstance(expected, Pause)
            assert decision.until == pytest.approx(expected.until, abs=1e-9), f"seed {seed}"
        kinds[type(decision)] += 1
    assert len(kinds) == 3, "every kind of decision was tried"
