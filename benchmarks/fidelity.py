"""What the fidelity monitor costs the requests: latency and throughput with it and without it.

    python -m benchmarks.fidelity [--profile int8] [--load 0.5] [--seconds 3] [--rounds 20] [--json FILE]

Two servers with the bundled model, one of which samples every answer. In turns, one of them gets requests in an open
loop, Poisson arrivals at so much of the capacity that was measured just before, and then callers that never pause; the
other is stopped (SIGSTOP) meanwhile, so that it compares nothing in the turn of the first. Both get the same arrivals.
The intervals are of 95 %, by a bootstrap over the rounds.
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.bursts import Contender, capacity
from benchmarks.serving import Server, open_loop, pictures, real_server, report
from damoserve.v1 import detection_pb2_grpc as pb_grpc

BAR = 1.03
"""With the monitor, the 99 % quantile may be so many times what it is without."""
TIMEOUT = 10.0
RESAMPLES = 2000
SERVERS: Mapping[str, float] = {"off": 0.0, "on": 1.0}
"""The share of answers that each server samples."""


@dataclass
class Windows:
    """What one server did, one entry for each round."""

    latencies: list[NDArray[np.float64]] = field(default_factory=list)
    """Seconds of the requests of the open loop."""
    failed: int = 0
    saturated: list[float] = field(default_factory=list)
    """Images a second with callers that never pause."""

    def quantile(self, share: float, rounds: Sequence[int]) -> float:
        return float(np.quantile(np.concatenate([self.latencies[number] for number in rounds]), share))

    def throughput(self, rounds: Sequence[int]) -> float:
        return float(np.mean([self.saturated[number] for number in rounds]))


@contextmanager
def turn_of(server: Server, others: Sequence[Server]) -> Iterator[None]:
    for other in others:
        os.kill(other.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for other in others:
            os.kill(other.pid, signal.SIGCONT)


async def play(contender: Contender, times: Sequence[float], image: bytes) -> tuple[NDArray[np.float64], int]:
    """Sends a request at each of these times, in seconds from now: how long the answered took, how many failed.

    A latency is counted from when its request was to be sent, late callers and all.
    """
    request = contender.request(image)
    latencies: list[float] = []
    async with contender.server.channel() as channel:
        await channel.channel_ready()
        stub: Any = pb_grpc.DetectionServiceStub(channel)

        async def call(begin: float) -> None:
            try:
                await stub.Detect(request, timeout=TIMEOUT)
            except grpc.aio.AioRpcError:
                return
            latencies.append(time.monotonic() - begin)

        await open_loop(times, call)
    return np.array(latencies), len(times) - len(latencies)


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of a Poisson process."""
    generator = random.Random(seed)
    at, times = 0.0, []
    while (at := at + generator.expovariate(rate)) < seconds:
        times.append(at)
    return times


def measure(servers: Mapping[str, Server], rate: float, options: "Options") -> dict[str, Windows]:
    image = pictures((640,))[0]
    found = {name: Windows() for name in servers}
    for number in range(options.rounds):
        names = sorted(servers, reverse=bool(number % 2))  # neither is always the first
        for name in names:
            server, windows = servers[name], found[name]
            with turn_of(server, [other for other in servers.values() if other is not server]):
                times = arrivals(rate, options.seconds, seed=number)
                latencies, failed = asyncio.run(play(Contender(name, server, options.profile), times, image))
                windows.latencies.append(latencies)
                windows.failed += failed
                saturated = capacity(server, image, options.profile, options.seconds / 2)
                windows.saturated.append(asyncio.run(saturated))
    return found


@dataclass(frozen=True)
class Options:
    """How long and at what."""

    profile: str
    load: float
    seconds: float
    rounds: int


def ratio(found: Mapping[str, Windows], figure: Callable[[Windows, Sequence[int]], float]) -> tuple[float, ...]:
    """On against off, and its interval."""
    rounds = range(len(found["on"].latencies))
    generator = random.Random(0)
    drawn = [generator.choices(rounds, k=len(rounds)) for _ in range(RESAMPLES)]
    ratios = [figure(found["on"], chosen) / figure(found["off"], chosen) for chosen in drawn]
    whole = figure(found["on"], rounds) / figure(found["off"], rounds)
    return whole, *np.quantile(ratios, [0.025, 0.975]).tolist()


def main(
    profile: Annotated[str, typer.Option(help="Profile that serves.")] = "int8",
    load: Annotated[float, typer.Option(min=0.01, max=1, help="Of the capacity.")] = 0.5,
    seconds: Annotated[float, typer.Option(min=1, help="Of each turn in the open loop; half of it saturated.")] = 3.0,
    rounds: Annotated[int, typer.Option(min=2)] = 20,
    file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Exit code 1 when the 99 % quantile grows by more than 3 %, or a request fails."""
    options = Options(profile, load, seconds, rounds)
    settings = {"workers": 2, "threads_per_worker": 1, "fidelity__kept_images": 64}
    with (
        real_server(**settings, fidelity__share=SERVERS["off"]) as (off, _),
        real_server(**settings, fidelity__share=SERVERS["on"]) as (on, _),
    ):
        servers = {"off": off, "on": on}
        with turn_of(off, [on]):
            most = asyncio.run(capacity(off, pictures((640,))[0], profile))
        found = measure(servers, load * most, options)
        compared = {
            result: on.samples().sum("damoserve_fidelity_images_total", result=result)
            for result in ("compared", "dropped_busy")
        }
    figures: dict[str, Callable[[Windows, Sequence[int]], float]] = {
        "p50": lambda windows, chosen: windows.quantile(0.5, chosen),
        "p99": lambda windows, chosen: windows.quantile(0.99, chosen),
        "images/s, saturated": Windows.throughput,
    }
    ratios = {name: ratio(found, figure) for name, figure in figures.items()}
    every = range(rounds)
    table: list[Sequence[object]] = [("", "off", "on", "on/off", "95 %")]
    for name, figure in figures.items():
        values = [figure(found[which], every) for which in ("off", "on")]
        shown = [f"{1000 * value:.1f} ms" if name.startswith("p") else f"{value:.1f}" for value in values]
        whole, low, high = ratios[name]
        table.append((name, *shown, f"{whole:.3f}", f"{low:.3f} to {high:.3f}"))
    failed = {name: windows.failed for name, windows in found.items()}
    report({**vars(options), "capacity": most, "ratios": ratios, "failed": failed, **compared}, table, file)
    sent = sum(len(latencies) for latencies in found["on"].latencies)
    typer.echo(f"{sent} requests each at {load * most:.1f}/s, failed {failed}; {compared}")
    raise typer.Exit(1 if ratios["p99"][0] > BAR or any(failed.values()) else 0)


if __name__ == "__main__":
    typer.run(main)
