"""How long the server's policy takes for one decision.

`python benchmarks/decisions.py` prints microseconds for 64 waiting requests and 8 profiles, with and without a gain by
batches, for requests that allow all profiles and for 16 different choices of them.
"""

import argparse
import random
import statistics
import time

from damoserve_server.scheduling.deadline import DeadlinePolicy
from damoserve_server.scheduling.policy import Cost, QueueState, Requirements
from damoserve_server.scheduling.scheduler import Ticket

PROFILES = tuple(f"profile {number}" for number in range(8))
LARGEST_BATCH = 4


def ladder(batch_exponent: float) -> dict[str, Cost]:
    """Each profile a little less accurate and quicker than the one before; an exponent below 1 makes batches win."""
    return {
        profile: Cost(
            0.6 - 0.01 * place,
            tuple(0.06 / (place + 1) * size**batch_exponent for size in range(1, LARGEST_BATCH + 1)),
        )
        for place, profile in enumerate(PROFILES)
    }


def queue(waiting: int, choices: int, generator: random.Random) -> list[Ticket[str, None]]:
    """Requests with up to a second left, with as many different choices of profiles."""
    allowed = [PROFILES] + [
        tuple(sorted(generator.sample(PROFILES, generator.randint(1, len(PROFILES))))) for _ in range(choices - 1)
    ]
    alternatives = [
        Requirements(generator.choice(allowed), 1 + generator.random(), 1 + generator.random(), 0.5)
        for _ in range(waiting)
    ]
    return [Ticket(requirements, 0.0, ready=True) for requirements in alternatives]


def measure(state: QueueState[str, Ticket[str, None]], runs: int) -> list[float]:
    """Microseconds of each decision."""
    policy = DeadlinePolicy(0.005)
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        policy.decide(state)
        taken.append(1e6 * (time.perf_counter() - began))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waiting", type=int, default=64)
    parser.add_argument("--runs", type=int, default=2000)
    options = parser.parse_args()
    for batches, exponent in {"batches win": 0.6, "they do not": 1.0}.items():
        for choices in (1, 16):
            tickets = queue(options.waiting, choices, random.Random(1))
            state = QueueState(0.9, tickets, ladder(exponent), busy=(0.02,), rate=50.0, budget=0.25, last_accuracy=0.6)
            taken = measure(state, options.runs)
            tail = statistics.quantiles(taken, n=100)[94]
            print(f"{batches}, choices {choices:2}: median {statistics.median(taken):4.0f} us, p95 {tail:4.0f} us")


if __name__ == "__main__":
    main()
