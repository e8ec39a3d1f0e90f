"""Serving without a server: the server's own scheduler and policies, with a clock that jumps from event to event.

`python benchmarks/simulator.py` compares the policies under bursts and prints a table.
"""

import argparse
import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from damoserve_server.errors import DamoserveError
from damoserve_server.scheduling.baselines import FixedProfile, ModelSwitching, SlackFit, StaticTiers
from damoserve_server.scheduling.deadline import DeadlinePolicy
from damoserve_server.scheduling.policy import Cost, Policy, Requirements
from damoserve_server.scheduling.scheduler import Batch, Scheduler, Ticket

LADDER = {
    "fp32": Cost(0.626, (0.060, 0.120, 0.180, 0.240)),
    "pruned": Cost(0.620, (0.030, 0.060, 0.090, 0.120)),
    "int8": Cost(0.610, (0.020, 0.040, 0.060, 0.080)),
    "int8+pruned": Cost(0.590, (0.010, 0.020, 0.030, 0.040)),
}
"""A made-up ladder."""


@dataclass(frozen=True)
class Arrival:
    """One request: when it comes, and what it wants; times in seconds."""

    at: float
    budget: float
    allowed: tuple[str, ...]
    objective: float | None = None
    priority: int = 5


@dataclass
class Outcome:
    """What became of a request."""

    arrival: Arrival
    profile: str | None = None
    answered_at: float | None = None
    started_at: float | None = None
    error: DamoserveError | None = None

    @property
    def in_time(self) -> bool:
        return self.answered_at is not None and self.answered_at <= self.arrival.at + self.arrival.budget


@dataclass
class Simulation:
    """Runs arrivals through a scheduler. `takes` is the true time of a batch; by default the estimate is exact."""

    policy: Policy
    costs: Mapping[str, Cost]
    workers: int = 1
    max_queue: int = 64
    takes: Callable[[str, int], float] | None = None
    now: float = 0.0
    decisions: Counter[str] = field(default_factory=Counter)

    def run(self, arrivals: Iterable[Arrival]) -> list[Outcome]:
        scheduler: Scheduler[str, Outcome] = Scheduler(
            self.policy, self.costs.__getitem__, max_queue=self.max_queue, clock=lambda: self.now
        )
        scheduler.workers = self.workers
        order = count()
        events: list[tuple[float, int, Arrival | Batch[str, Outcome] | None]] = [
            (arrival.at, next(order), arrival) for arrival in arrivals
        ]
        heapq.heapify(events)
        outcomes: list[Outcome] = []
        tickets: dict[Ticket[str, Outcome], Outcome] = {}
        while events:
            self.now, _, event = heapq.heappop(events)
            if isinstance(event, Arrival):
                outcomes.append(outcome := Outcome(event))
                try:
                    ticket = scheduler.admit(self._wish(event), 0.0)
                    tickets[ticket] = outcome
                    scheduler.make_ready(ticket, outcome)
                except DamoserveError as error:
                    outcome.error = error
            elif isinstance(event, Batch):
                scheduler.finish(event)
                for ticket in event.tickets:
                    tickets[ticket].answered_at = self.now
            for ticket, failure in scheduler.drop():
                tickets[ticket].error = failure
            while (batch := scheduler.take()) is not None:
                self.decisions[batch.profile] += 1
                for ticket in batch.tickets:
                    tickets[ticket].profile, tickets[ticket].started_at = batch.profile, self.now
                takes = self.takes or (lambda profile, size: self.costs[profile].expected(size))
                end = self.now + takes(batch.profile, len(batch.tickets))
                heapq.heappush(events, (end, next(order), batch))
            if (wake := scheduler.next_take()) is not None:
                heapq.heappush(events, (wake, next(order), None))
        return outcomes

    def _wish(self, arrival: Arrival) -> Requirements[str]:
        due = arrival.budget if arrival.objective is None else min(arrival.budget, arrival.objective)
        return Requirements(
            arrival.allowed, arrival.at + arrival.budget, arrival.at + due, arrival.at, arrival.priority
        )


def bursts(rate: float, seconds: float, budget: float, allowed: tuple[str, ...], seed: int) -> list[Arrival]:
    """Arrivals with gamma-distributed gaps whose coefficient of variation is 4."""
    generator = random.Random(seed)
    shape = 1 / 4**2
    at, arrivals = 0.0, []
    while (at := at + generator.gammavariate(shape, 1 / (rate * shape))) < seconds:
        arrivals.append(Arrival(at, budget, allowed))
    return arrivals


def accuracy(outcomes: Sequence[Outcome], costs: Mapping[str, Cost]) -> tuple[float, float]:
    """The share answered in time, and the mean accuracy of these."""
    served = [costs[outcome.profile].accuracy for outcome in outcomes if outcome.in_time and outcome.profile]
    return len(served) / len(outcomes), sum(served) / len(served) if served else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--budget", type=float, default=0.25)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    allowed = tuple(LADDER)
    policies: dict[str, Callable[[], Policy]] = {
        "ours": lambda: DeadlinePolicy(0.005),
        "slackfit": SlackFit,
        "model switching": ModelSwitching,
        "static tiers": lambda: StaticTiers(((0.2, "int8"), (0.0, "int8+pruned"))),
        **{f"fixed {profile}": partial(FixedProfile, profile) for profile in LADDER},
    }
    capacity = options.workers / LADDER["fp32"].seconds_per_image
    print(f"{'policy':18} " + "   ".join(f"{load:4}x: in time, mAP" for load in (0.6, 0.9, 1.2, 3.0)))
    for name, make in policies.items():
        cells = []
        for load in (0.6, 0.9, 1.2, 3.0):
            outcomes: list[Outcome] = []
            for seed in range(options.seeds):
                arrivals = bursts(load * capacity, options.seconds, options.budget, allowed, seed)
                outcomes += Simulation(make(), LADDER, options.workers).run(arrivals)
            in_time, mean = accuracy(outcomes, LADDER)
            cells.append(f"{100 * in_time:7.2f} % {100 * mean:7.2f}     ")
        print(f"{name:18} " + " ".join(cells))


if __name__ == "__main__":
    main()
