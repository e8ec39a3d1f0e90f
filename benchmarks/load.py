"""Loads a running server with mixed requests and says how every call ended.

    python benchmarks/load.py --address 127.0.0.1:50051 --metrics http://127.0.0.1:9464/metrics --pid PID

Each of the callers sends one request after the other, choosing profile or tier, deadline and picture at random (by
seed). Every call has to end in a detection result or in one of the codes that the contract documents for load; any
other is counted as a failure. With `--pid` the server's resident memory is read after ten seconds and at the end.
"""

import asyncio
import json
import random
import statistics
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from damoserve_client import AsyncClient, DamoserveError, DeadlineExceeded, DetectOptions, Overloaded

CHOICES: Sequence[DetectOptions] = (
    {"profile": "fp32"},
    {"profile": "int8"},
    {"profile": "pruned"},
    {"profile": "int8+pruned"},
    {"tier": "realtime"},
    {"tier": "balanced"},
    {"tier": "accurate"},
    {},
)
TIMEOUTS = (0.02, 0.1, 0.5, 2.0, 10.0)
SETTLED_SECONDS = 10.0
MAX_GROWTH_PERCENT = 3.0


@dataclass
class Tally:
    """What became of the calls."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    profiles: Counter[str] = field(default_factory=Counter)
    batch_sizes: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def report(self, duration: float, memory: tuple[int, int] | None) -> dict[str, Any]:
        figures: dict[str, Any] = {
            "duration_s": round(duration, 1),
            "calls": self.outcomes.total(),
            "outcomes": dict(self.outcomes.most_common()),
            "failures": dict(self.failures),
            "profiles": dict(self.profiles.most_common()),
            "batch_sizes": dict(sorted(self.batch_sizes.items())),
        }
        if len(self.seconds) > 1:
            cuts = statistics.quantiles(self.seconds, n=100)
            figures["answered_per_s"] = round(len(self.seconds) / duration, 1)
            figures["latency_ms"] = {f"p{cut}": round(cuts[cut - 1] * 1e3, 1) for cut in (50, 95, 99)}
        if memory is not None:
            settled, end = memory
            figures["memory_mb"] = {
                f"after_{SETTLED_SECONDS:.0f}_s": round(settled / 1e6, 1),
                "end": round(end / 1e6, 1),
                "growth_percent": round(100 * (end / settled - 1), 2),
            }
        return figures


async def _call(client: AsyncClient, images: Sequence[bytes], rng: random.Random, tally: Tally) -> None:
    options = rng.choice(CHOICES)
    started = time.perf_counter()
    try:
        result = await client.detect(rng.choice(images), timeout=rng.choice(TIMEOUTS), **options)
    except (DeadlineExceeded, Overloaded) as error:
        tally.outcomes[f"{error.code.name} {error.reason}".strip()] += 1
    except DamoserveError as error:
        tally.outcomes[error.code.name] += 1
        tally.failures[str(error)] += 1
    else:
        tally.outcomes["OK"] += 1
        tally.profiles[result.profile] += 1
        tally.batch_sizes[result.batch_size] += 1
        tally.seconds.append(time.perf_counter() - started)


async def _load(address: str, images: Sequence[bytes], callers: int, seconds: float, pid: int | None) -> dict[str, Any]:
    tally = Tally()
    started = time.monotonic()
    end = started + seconds
    process = psutil.Process(pid) if pid else None
    async with AsyncClient(address) as client:

        async def caller(number: int) -> None:
            rng = random.Random(number)
            while time.monotonic() < end:
                await _call(client, images, rng, tally)

        tasks = [asyncio.create_task(caller(number)) for number in range(callers)]
        await asyncio.sleep(min(SETTLED_SECONDS, seconds / 2))
        settled = process.memory_info().rss if process else 0
        await asyncio.gather(*tasks)
    memory = (settled, process.memory_info().rss) if process else None
    return tally.report(time.monotonic() - started, memory)


def _batches(metrics: str) -> dict[str, int]:
    """How many batches the server has counted, by their size: `2` is 2, `4` is 3 or 4, and so on."""
    with urllib.request.urlopen(metrics) as response:
        lines = response.read().decode().splitlines()
    cumulative: defaultdict[str, float] = defaultdict(float)
    for line in lines:
        if line.startswith("damoserve_batch_size_bucket"):
            edge = line.partition('le="')[2].partition('"')[0]
            cumulative[edge] += float(line.rpartition(" ")[2])
    counts: dict[str, int] = {}
    for edge, total in cumulative.items():
        counts[edge] = int(total) - sum(counts.values())
    return counts


def main(  # noqa: PLR0913, PLR0917
    address: Annotated[str, typer.Option()] = "127.0.0.1:50051",
    metrics: Annotated[str | None, typer.Option(help="URL of the server's metrics.")] = None,
    pid: Annotated[int | None, typer.Option(help="The server's process, to watch its memory.")] = None,
    callers: Annotated[int, typer.Option(min=1)] = 16,
    seconds: Annotated[float, typer.Option(min=1)] = 60.0,
    image: Annotated[list[Path] | None, typer.Option(exists=True)] = None,
) -> None:
    """Exit code 1 when a call failed, memory grew by more than 3 %, or no batch was larger than one."""
    images = [path.read_bytes() for path in image or [Path("docs/images/smear.jpg")]]
    figures = asyncio.run(_load(address, images, callers, seconds, pid))
    if metrics:
        figures["batches_up_to_size"] = _batches(metrics)
    typer.echo(json.dumps(figures, indent=2))
    grown = figures.get("memory_mb", {}).get("growth_percent", 0.0)
    alone = not any(size > 1 for size in figures["batch_sizes"])
    raise typer.Exit(1 if figures["failures"] or grown > MAX_GROWTH_PERCENT or alone else 0)


if __name__ == "__main__":
    typer.run(main)
