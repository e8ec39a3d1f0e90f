"""What Prometheus costs a busy server: throughput with a scrape a second and without, and the time of a scrape.

    python -m benchmarks.scrape [--pairs 30] [--seconds 4] [--json FILE]

Callers that never pause keep a server busy, which runs in a process of its own on the same cores. Windows with and
without a scraper follow one another; of each pair the order is drawn by seed. Only the ratio within a pair is compared:
the machine is shared. A scrape asks as Prometheus does, in its format and compressed.
"""

import asyncio
import random
import statistics
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.serving import STOP_SECONDS, Server, pictures, real_server, report
from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc

PROFILE = "int8"
"""Named, so that every window has the same work."""
INTERVAL = 1.0
SETTLING_SECONDS = 2.0
TIMEOUT = 10.0
HEADERS = {
    "Accept": "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "Accept-Encoding": "gzip",
}
"""Prometheus 2.42's."""


@dataclass
class Load:
    """Callers of one server, and what they counted."""

    server: Server
    callers: int
    answered: int = 0
    scrapes: list[float] = field(default_factory=list)
    """Seconds of each."""

    async def run(self) -> None:
        """Until it is cancelled."""
        images = pictures()
        async with self.server.channel() as channel, asyncio.TaskGroup() as group:
            stub: Any = pb_grpc.DetectionServiceStub(channel)
            for number in range(self.callers):
                group.create_task(self._call(stub, images[number % len(images)]))

    async def _call(self, stub: Any, image: bytes) -> None:
        request = pb.DetectRequest(image=pb.Image(content=image), profile=PROFILE)
        while True:
            await stub.Detect(request, timeout=TIMEOUT)
            self.answered += 1

    async def window(self, seconds: float, scraped: bool) -> float:
        """Answers a second, while somebody scrapes or nobody does."""
        scraping = asyncio.create_task(self._scrape() if scraped else asyncio.sleep(0))
        before, started = self.answered, time.monotonic()
        await asyncio.sleep(seconds)
        rate = (self.answered - before) / (time.monotonic() - started)
        scraping.cancel()
        with suppress(asyncio.CancelledError):
            await scraping
        return rate

    async def _scrape(self) -> None:
        while True:
            self.scrapes.append(await asyncio.to_thread(scrape, self.server.metrics))
            await asyncio.sleep(INTERVAL)


def scrape(url: str) -> float:
    """How many seconds a scrape takes."""
    started = time.perf_counter()
    with urllib.request.urlopen(urllib.request.Request(url, headers=HEADERS), timeout=STOP_SECONDS) as response:
        response.read()
    return time.perf_counter() - started


async def compare(load: Load, pairs: int, seconds: float) -> list[float]:
    """Of each pair of windows the throughput with the scraper, as a share of that without."""
    rng, ratios = random.Random(0), []
    running = asyncio.create_task(load.run())
    await asyncio.sleep(SETTLING_SECONDS)
    for _ in range(pairs):
        rates = {scraped: await load.window(seconds, scraped) for scraped in rng.sample((False, True), 2)}
        ratios.append(rates[True] / rates[False])
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    return ratios


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """The quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return low, middle, high


def main(
    pairs: Annotated[int, typer.Option(min=2)] = 30,
    seconds: Annotated[float, typer.Option(min=1, help="Of each window.")] = 4.0,
    callers: Annotated[int, typer.Option(min=1)] = 8,
    file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Print quartiles; a ratio of 0.98 is a loss of 2 %."""
    with real_server() as (server, _):
        idle = spread([scrape(server.metrics) for _ in range(20)])
        load = Load(server, callers)
        ratios = asyncio.run(compare(load, pairs, seconds))
    rows = {
        "throughput with / without": spread(ratios),
        "scrape of the busy server, ms": tuple(1e3 * value for value in spread(load.scrapes)),
        "scrape of the idle server, ms": tuple(1e3 * value for value in idle),
    }
    table = [
        ["what", "25 %", "median", "75 %"],
        *([name, *(f"{value:.3f}" for value in row)] for name, row in rows.items()),
    ]
    figures = {"ratios": ratios, "scrape_s": load.scrapes, "idle_scrape_quartiles_s": idle, "answered": load.answered}
    report(figures, table, file)


if __name__ == "__main__":
    typer.run(main)
