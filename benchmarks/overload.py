"""More requests at once than can be answered in time: who is answered, who is refused, when, and is it counted.

    python -m benchmarks.overload [READING ...] [--repeats 5] [--wait-ms 5] [--json FILE]

The experiment that Triton 2.51 was put through: an engine that takes 250 ms whatever the batch, at most 4 images a
batch, one worker, 8 may wait, 30 requests at once. Triton's 400 ms there bound the wait in the queue: what started by
then was answered, after 505 ms. Here a budget bounds the answer. So there are two readings: 650 ms, in which as in
Triton two batches fit (ideal: 8 answered) and a third does not, and 400 ms, in which one fits (ideal: 4). In a third
the engine becomes five times slower than the server has learned and 12 requests, one every 5 ms, have 200 ms each:
else nothing that was accepted ever expires, and with 30 at once a caller's clock would show the sending of the
others, too. In the last, 6 requests with a gRPC deadline of 100 ms must not be computed at all. One call before each
volley finds the server as one that serves already.
"""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.duration_pb2 import Duration

from benchmarks.engines import Switches
from benchmarks.serving import Samples, Server, copy_bundled, end_of, made_server, pictures, report
from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc

PROFILE = "int8+pruned"
ENGINE_SECONDS = 0.25
SETTINGS = {"workers": 1, "max_batch_size": 4, "max_queue": 8}
PATIENCE = 5.0
DETECT = {"grpc_service": "damoserve.v1.DetectionService", "grpc_method": "Detect"}
MAX_LATE_MS = 10.0
MAX_REFUSAL_MS = 50.0
"""Thirty callers and the server share the machine: the last of thirty simultaneous refusals waits for 29 others."""


@dataclass(frozen=True)
class Reading:
    """So many requests at once, with a budget in seconds."""

    name: str
    requests: int
    budget: float
    ideal: int
    learned: float = ENGINE_SECONDS
    """Seconds of a batch until the server is warm."""
    gap: float = 0.0
    """Seconds from one request to the next."""
    deadline: bool = False
    """Whether the budget is the gRPC deadline instead of a field of the request."""


READINGS = (
    Reading("two batches fit", 30, 0.65, 8),
    Reading("one batch fits", 30, 0.4, 4),
    Reading("slower than learned", 12, 0.2, 0, learned=0.05, gap=0.005),
    Reading("none fits", 6, 0.1, 0, deadline=True),
)


@dataclass(frozen=True)
class End:
    """How a call ended, after how many milliseconds."""

    what: str
    ms: float


@dataclass(frozen=True)
class Trial:
    """One volley, and what the server says of it."""

    reading: Reading
    ends: list[End]
    computed: int
    """Images that the engine was given."""
    handled: int
    """Calls that `grpc_server_handled_total` counted."""
    refused: int
    """Calls that `damoserve_refused_total` counted."""

    @property
    def answered(self) -> int:
        return sum(end.what == "OK" and end.ms <= 1000 * self.reading.budget for end in self.ends)

    def late(self) -> list[float]:
        """By how many milliseconds each expired request was answered after its deadline."""
        return [end.ms - 1000 * self.reading.budget for end in self.ends if end.what.endswith("DEADLINE_EXPIRED")]

    def refusals(self) -> list[float]:
        """After how many milliseconds each refused request was told."""
        refused = ("DEADLINE_UNREACHABLE", "QUEUE_FULL")
        return [end.ms for end in self.ends if end.what.endswith(refused)]

    def uncounted(self) -> int:
        """Calls that the metrics do not have. gRPC itself ends a call at its deadline: that has no reason to count."""
        failed = sum(" " in end.what for end in self.ends)
        return abs(len(self.ends) - self.handled) + abs(failed - self.refused)

    def passes(self) -> bool:
        timely = max(self.late(), default=0) <= MAX_LATE_MS and max(self.refusals(), default=0) <= MAX_REFUSAL_MS
        useless = self.computed if self.reading.deadline else 0
        return self.answered >= self.reading.ideal and timely and not self.uncounted() and not useless


async def volley(stub: Any, reading: Reading, image: bytes) -> list[End]:
    """Sends them."""
    request = pb.DetectRequest(image=pb.Image(content=image), profile=PROFILE)
    if not reading.deadline:
        request.latency_budget.CopyFrom(Duration(nanos=int(1e9 * reading.budget)))
    timeout = reading.budget if reading.deadline else PATIENCE

    async def call(number: int) -> End:
        await asyncio.sleep(number * reading.gap)
        started = time.monotonic()
        try:
            await stub.Detect(request, timeout=timeout)
            what = "OK"
        except grpc.aio.AioRpcError as error:
            what = end_of(error)
        return End(what, 1000 * (time.monotonic() - started))

    return list(await asyncio.gather(*(call(number) for number in range(reading.requests))))


def _counted(before: Samples, after: Samples) -> tuple[int, int]:
    return (
        after.sum("grpc_server_handled_total", **DETECT) - before.sum("grpc_server_handled_total", **DETECT),
        after.sum("damoserve_refused_total") - before.sum("damoserve_refused_total"),
    )


def experiment(reading: Reading, image: bytes, wait_ms: float) -> Trial:
    with tempfile.TemporaryDirectory() as folder:
        repository = copy_bundled(Path(folder) / "repository", profiles=(PROFILE,))
        switches = Switches(Path(folder))
        switches.slow_down(reading.learned)
        settings = SETTINGS | {"repository": repository, "max_batch_wait_ms": wait_ms}
        with made_server(settings, switches) as server:
            return asyncio.run(_try(server, switches, reading, image))


async def _try(server: Server, switches: Switches, reading: Reading, image: bytes) -> Trial:
    async with server.channel() as channel:
        stub = pb_grpc.DetectionServiceStub(channel)
        await stub.Detect(pb.DetectRequest(image=pb.Image(content=image), profile=PROFILE), timeout=PATIENCE)
        switches.slow_down(ENGINE_SECONDS)
        switches.forget()
        before = server.samples()
        ends = await volley(stub, reading, image)
        await asyncio.sleep(2 * ENGINE_SECONDS)  # for whatever it would still compute
        handled, refused = _counted(before, server.samples())
        return Trial(reading, ends, sum(switches.batches()), handled, refused)


def _span(values: Sequence[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}" if values else "-"


def _row(trials: Sequence[Trial]) -> list[object]:
    reading = trials[0].reading
    return [
        reading.name,
        reading.requests,
        round(1000 * reading.budget),
        reading.ideal,
        _counts([trial.answered for trial in trials]),
        _counts([len(trial.late()) for trial in trials]),
        _span([late for trial in trials for late in trial.late()]),
        _counts([len(trial.refusals()) for trial in trials]),
        _span([ms for trial in trials for ms in trial.refusals()]),
        _counts([trial.computed for trial in trials]),
        sum(trial.uncounted() for trial in trials),
    ]


def _counts(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"


HEADS = (
    "reading", "sent", "budget ms", "ideal", "in time", "expired", "ms after deadline", "refused", "after ms",
    "images computed", "not counted",
)  # fmt: skip


def main(
    chosen: Annotated[list[str] | None, typer.Argument(help="Parts of names of readings. Default: all.")] = None,
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    wait_ms: Annotated[float, typer.Option(help="The server's setting max_batch_wait_ms.")] = 25.0,
    file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Exit code 1 when a bar is missed in any repeat."""
    readings = [reading for reading in READINGS if not chosen or any(part in reading.name for part in chosen)]
    if not readings:
        raise typer.BadParameter(f"there are {', '.join(reading.name for reading in READINGS)}")
    image = pictures((320,))[0]
    trials = {reading: [experiment(reading, image, wait_ms) for _ in range(repeats)] for reading in readings}
    figures: dict[str, Any] = {
        reading.name: [
            {
                "in_time": trial.answered,
                "ends": Counter(end.what for end in trial.ends),
                "late_ms": trial.late(),
                "refused_after_ms": trial.refusals(),
                "images_computed": trial.computed,
                "not_counted": trial.uncounted(),
                "passes": trial.passes(),
            }
            for trial in found
        ]
        for reading, found in trials.items()
    }
    report({"readings": figures}, [HEADS, *(_row(found) for found in trials.values())], file)
    raise typer.Exit(0 if all(trial.passes() for found in trials.values() for trial in found) else 1)


if __name__ == "__main__":
    typer.run(main)
