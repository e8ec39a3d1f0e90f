"""Bursts of requests at a running server: how many are answered in time, and how accurately.

    python -m benchmarks.bursts [--seconds 20] [--rounds 3] [--load 0.6 --load 0.9 ...] [--json FILE]

Open loop: requests come whether or not earlier ones are answered, with gamma-distributed gaps (coefficient of
variation 4), at 0.6, 0.9 and 1.2 times what fp32 alone can serve, as measured just before. All have 250 ms. The same
arrivals go to a server that chooses (tier BALANCED), to the same server with the profile named by the request, and to
servers with the published policies; one after the other, in turns. Server and callers are processes on the same
cores.

The latencies are real, the ACCURACIES ARE DECLARED: of the bundled profiles the quickest is also among the most
accurate, which leaves nothing to choose; so a copy of them states a ladder on which time buys accuracy. A static
table of tiers is a fixed profile for callers who all want the same tier: which one is a matter of whoever writes it,
so each is shown.
"""

import asyncio
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer

from benchmarks.serving import PROFILES, Server, copy_bundled, made_server, open_loop, pictures, report
from benchmarks.simulator import bursts
from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_server.engines.choice import load_engine
from damoserve_server.scheduling.baselines import ModelSwitching, SlackFit
from damoserve_server.scheduling.policy import Policy

DECLARED = {"fp32": 0.63, "int8": 0.62, "pruned": 0.615, "int8+pruned": 0.60}
BUDGET = 0.25
LOADS = (0.6, 0.9, 1.2)
SATURATING_CALLERS = 8
CAPACITY_SECONDS = 6.0
TIERS = {"balanced": {"objective_ms": 1000 * BUDGET}}
POLICIES: Mapping[str, Policy | None] = {"ours": None, "SlackFit": SlackFit(), "model switching": ModelSwitching()}
STATIC = "pruned"
"""What a table says for BALANCED that was made with the ladder in mind: neither end of it."""


@dataclass
class Outcomes:
    """What became of the requests of one contender at one load."""

    sent: int = 0
    profiles: Counter[str] = field(default_factory=Counter)
    """Those that were answered in time, by the profile that served."""
    late: int = 0
    refused: int = 0
    attainments: list[float] = field(default_factory=list)
    """Of each round."""

    def attainment(self) -> float:
        return self.profiles.total() / self.sent if self.sent else 1.0  # a short round may have no arrivals

    def accuracy(self) -> float:
        served = self.profiles.total()
        return sum(DECLARED[name] * count for name, count in self.profiles.items()) / served if served else 0.0

    def effective(self) -> float:
        """Accuracy, counting whoever was not answered in time as 0."""
        return self.attainment() * self.accuracy()

    def add(self, other: "Outcomes") -> None:
        self.sent += other.sent
        self.profiles += other.profiles
        self.late += other.late
        self.refused += other.refused
        self.attainments.append(other.attainment())


@dataclass(frozen=True)
class Contender:
    """A server, and the profile that is asked of it; empty: the tier BALANCED."""

    name: str
    server: Server
    profile: str = ""

    def request(self, image: bytes) -> pb.DetectRequest:
        request = pb.DetectRequest(image=pb.Image(content=image), profile=self.profile)
        if not self.profile:
            request.latency_tier = pb.LATENCY_TIER_BALANCED
        return request


async def capacity(server: Server, image: bytes, profile: str = "fp32", seconds: float = CAPACITY_SECONDS) -> float:
    """Images a second of a profile, with callers enough to keep the server busy."""
    request = Contender("", server, profile).request(image)
    end = time.monotonic() + seconds
    answered = 0
    async with server.channel() as channel:
        stub: Any = pb_grpc.DetectionServiceStub(channel)

        async def caller() -> None:
            nonlocal answered
            while time.monotonic() < end:
                await stub.Detect(request, timeout=10)
                answered += 1

        await asyncio.gather(*(caller() for _ in range(SATURATING_CALLERS)))
    return answered / seconds


async def play(contender: Contender, times: Sequence[float], image: bytes) -> Outcomes:
    """Sends a request at each of these times, in seconds from now."""
    request = contender.request(image)
    outcomes = Outcomes(sent=len(times))
    async with contender.server.channel() as channel:
        await channel.channel_ready()
        stub: Any = pb_grpc.DetectionServiceStub(channel)

        async def call(begin: float) -> None:
            due = begin + BUDGET  # late is late, also where the caller itself was slow to send
            try:
                answer = await stub.Detect(request, timeout=due - time.monotonic())
            except grpc.aio.AioRpcError:
                outcomes.refused += 1
                return
            if time.monotonic() <= due:
                outcomes.profiles[answer.profile] += 1
            else:
                outcomes.late += 1

        await open_loop(times, call)
    return outcomes


def contenders(servers: Mapping[str, Server]) -> Iterator[Contender]:
    for name, server in servers.items():
        yield Contender(name, server)
    for profile in PROFILES:
        yield Contender(f"fixed {profile}", servers["ours"], profile)


def dominated(mine: Outcomes, other: Outcomes) -> bool:
    """Whether the other is at least as good in both, and better in one."""
    ours, theirs = (mine.attainment(), mine.accuracy()), (other.attainment(), other.accuracy())
    return theirs != ours and all(a <= b for a, b in zip(ours, theirs, strict=True))


Results = dict[float, dict[str, Outcomes]]


def measure(repository: Path, seconds: float, rounds: int, loads: Sequence[float]) -> tuple[list[float], Results]:
    """The capacity in each round, and the outcomes by load and contender."""
    image = pictures((640,))[0]
    results: Results = {load: {} for load in loads}
    capacities = []
    with ExitStack() as stack:
        settings = {"repository": repository, "tiers": TIERS}
        servers = {
            name: stack.enter_context(made_server(settings, load_engine, policy)) for name, policy in POLICIES.items()
        }
        for number in range(rounds):
            capacities.append(asyncio.run(capacity(servers["ours"], image, seconds=min(seconds, CAPACITY_SECONDS))))
            for load in loads:
                arrivals = bursts(load * capacities[-1], seconds, BUDGET, (), seed=number)
                for contender in contenders(servers):
                    outcomes = asyncio.run(play(contender, [arrival.at for arrival in arrivals], image))
                    results[load].setdefault(contender.name, Outcomes()).add(outcomes)
    return capacities, results


def _spread(values: Sequence[float]) -> str:
    return f"{100 * min(values):.1f} to {100 * max(values):.1f}"


def _table(results: Results) -> list[Sequence[object]]:
    heads = ("load", "contender", "sent", "in time %", "of rounds", "accuracy", "both", "late", "refused", "served by")
    rows: list[Sequence[object]] = [heads]
    for load, found in results.items():
        for name, one in found.items():
            served = ", ".join(f"{profile} {count}" for profile, count in one.profiles.most_common())
            figures = (f"{100 * one.attainment():.2f}", _spread(one.attainments), f"{one.accuracy():.4f}")
            rows.append((load, name, one.sent, *figures, f"{one.effective():.4f}", one.late, one.refused, served))
    return rows


def verdict(results: Results) -> list[str]:
    """What is wrong: whoever dominates ours, and fixed int8 and the static table where ours does not dominate them."""
    wrong = []
    for load, found in results.items():
        ours = found["ours"]
        wrong += [f"{load}: {name} dominates ours" for name, one in found.items() if dominated(ours, one)]
        wrong += [
            f"{load}: ours does not dominate fixed {name}"
            for name in ("int8", STATIC)
            if not dominated(found[f"fixed {name}"], ours)
        ]
    return wrong


def main(
    seconds: Annotated[float, typer.Option(min=1, help="Of each load and contender in a round.")] = 20.0,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    load: Annotated[
        list[float] | None, typer.Option(min=0.1, help="Times the capacity of fp32. Default: 0.6, 0.9, 1.2.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Exit code 1 when ours is dominated, or does not dominate fixed int8 and the static table."""
    with tempfile.TemporaryDirectory() as folder:
        capacities, results = measure(copy_bundled(Path(folder), accuracies=DECLARED), seconds, rounds, load or LOADS)
    wrong = verdict(results)
    typer.echo(f"declared accuracies: {DECLARED}; fp32 alone: {statistics.median(capacities):.1f} images/s")
    figures = {
        "declared_accuracies": DECLARED,
        "fp32_images_per_s": capacities,
        "static_tiers": STATIC,
        "loads": {
            str(load): {name: vars(one) | {"accuracy": one.accuracy()} for name, one in found.items()}
            for load, found in results.items()
        },
        "wrong": wrong,
    }
    report(figures, _table(results), file)
    typer.echo("\n".join(wrong) or "ours is on the upper right of all")
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
