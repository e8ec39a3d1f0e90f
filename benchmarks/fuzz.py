"""Sends a server what no honest client would, and sees that it answers and serves on as before.

    python benchmarks/fuzz.py --requests 20000 --seed 1

Starts two servers with the bundled model and leaves one of them alone. Requests are mutated by seed: the bytes of a
valid `DetectRequest`, its image (JPEG, PNG, WebP, BMP: bits flipped, cut short, headers that claim huge sizes), and the
messages of `DetectStream`. Every call and every frame has to end in a result or in a code that the contract documents;
INTERNAL and UNKNOWN are failures, also where only the server counts them. Good calls to both servers, one after the
other, are timed before and after: what both share is the machine's.
"""

import asyncio
import io
import json
import random
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from PIL import Image

from damoserve.v1 import detection_pb2 as pb

NO_PROXY = (("grpc.enable_http_proxy", 0),)
DETECT = "/damoserve.v1.DetectionService/Detect"
STREAM = "/damoserve.v1.DetectionService/DetectStream"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
PER_STREAM = 8
SHARE_OF_STREAMS = 0.1
CALLERS = 8
GOOD_CALLS = 300
TIMEOUT = 60.0
FAILURES = {"INTERNAL", "UNKNOWN", "UNIMPLEMENTED", "DATA_LOSS", "UNAVAILABLE"}
MAX_SLOWER = 1.5
"""By how much the ratio to the other server may grow; with few calls on a busy machine it is itself uncertain."""
LOST = "Internal error from Core"
"""What grpc.aio says where the server ends a stream during a write: the code is lost (grpc/grpc issue 36066)."""
CODES = {code.value[0]: code.name for code in grpc.StatusCode}
READY = re.compile(r"serving .* on (?P<address>\S+:\d+), metrics on (?P<metrics>\S+)")
EDGES = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1)


@dataclass
class Tally:
    """How many calls, streams and frames ended in what."""

    calls: Counter[str] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)
    frames: Counter[str] = field(default_factory=Counter)

    @property
    def failures(self) -> int:
        return sum(ends[code] for ends in (self.calls, self.streams, self.frames) for code in FAILURES)


class Mutator:
    """Makes messages that are wrong in all ways, the same for the same seed."""

    def __init__(self, seed: int, picture: Image.Image) -> None:
        self._rng = random.Random(seed)
        self._files = [_encoded(picture, kind) for kind in FORMATS]

    def streams_next(self) -> bool:
        return self._rng.random() < SHARE_OF_STREAMS

    def request(self) -> bytes:
        message = pb.DetectRequest(image=pb.Image(content=self.image()))
        self._wish(message)
        return self._damaged(message.SerializeToString()) if self._rng.random() < 0.5 else message.SerializeToString()

    def stream(self) -> list[bytes]:
        options = pb.StreamOptions()
        setattr(options, "on_overload", self._rng.choice((0, 1, 2, 2, 7)))  # noqa: B010 - 7 has no type
        if self._rng.random() < 0.5:
            self._wish(options)
        messages = [pb.DetectStreamRequest(options=options)]
        for number in range(self._rng.randrange(PER_STREAM)):
            frame = pb.Frame(id=number, image=pb.Image(content=self.image()))
            if self._rng.random() < 0.3:
                frame.answers_taken = self._rng.choice((0, number, 2**64 - 1))
            messages.append(pb.DetectStreamRequest(frame=frame))
        if self._rng.random() < 0.1:
            self._rng.shuffle(messages)
        raw = [message.SerializeToString() for message in messages]
        return [self._damaged(each) if self._rng.random() < 0.05 else each for each in raw]

    def image(self) -> bytes:
        file = self._rng.choice(self._files)
        mutate = self._rng.choice((self._flipped, self._cut, self._resized, self._joined, self._damaged, bytes))
        return mutate(file)

    def _wish(self, message: pb.DetectRequest | pb.StreamOptions) -> None:
        """Sets some fields to what they may and may not be."""
        rng = self._rng
        values: dict[str, Sequence[Any]] = {
            "model": ("", "blood-cells", "no", "\0", "é" * 5000, "../../etc"),
            "profile": ("", "int8", "int8+pruned", "no", "%s" * 100),
            "latency_tier": (0, 1, 2, 3, 4, -1, 2**31 - 1),
            "min_accuracy": (0.0, 0.5, 1.0, -1.0, float("nan"), float("inf"), 1e38),
            "score_threshold": (0.0, 0.05, 1.0, -0.0, float("nan"), float("-inf")),
            "max_detections": (1, 1000, 0, -1, 2**31 - 1),
        }
        for name in rng.sample(list(values), rng.randrange(3)):
            setattr(message, name, rng.choice(values[name]))
        if rng.random() < 0.2:
            message.latency_budget.seconds = rng.choice((0, 1, 10, -1, 2**63 - 1, -(2**63)))
            message.latency_budget.nanos = rng.choice((0, 1, 999_999_999, -1, 2**31 - 1, -(2**31)))

    def _flipped(self, data: bytes) -> bytes:
        changed = bytearray(data)
        reach = self._rng.choice((32, 256, len(data)))  # headers are short and matter most
        for _ in range(self._rng.choice((1, 4, 32))):
            changed[self._rng.randrange(min(reach, len(data)))] ^= 1 << self._rng.randrange(8)
        return bytes(changed)

    def _cut(self, data: bytes) -> bytes:
        return data[: self._rng.choice((self._rng.randrange(64), self._rng.randrange(len(data))))]

    def _resized(self, data: bytes) -> bytes:
        """A header that claims another size, or has some other number where one may be."""
        changed = bytearray(data)
        width = self._rng.choice((2, 4))
        order = self._rng.choice(("big", "little"))
        number = self._rng.choice(EDGES) % 2 ** (8 * width)
        at = self._sizes_at(data) if self._rng.random() < 0.7 else self._rng.randrange(64)
        changed[at : at + width] = number.to_bytes(width, order)
        return bytes(changed)

    def _sizes_at(self, data: bytes) -> int:
        if data.startswith(b"\xff\xd8"):
            return data.index(b"\xff\xc0") + 5 + self._rng.choice((0, 2))
        start = {b"\x89": 16, b"B": 18, b"R": 26}[data[:1]]
        return start + self._rng.choice((0, 2, 4))

    def _joined(self, data: bytes) -> bytes:
        other = self._rng.choice(self._files)
        return data[: self._rng.randrange(len(data))] + other[self._rng.randrange(len(other)) :]

    def _damaged(self, data: bytes) -> bytes:
        """Bytes inserted, removed or repeated, so that lengths no longer fit."""
        at = self._rng.randrange(min(len(data), 64)) if self._rng.random() < 0.7 else self._rng.randrange(len(data))
        size = self._rng.choice((1, 2, 8))
        return self._rng.choice(
            (
                data[:at] + self._rng.randbytes(size) + data[at:],
                data[:at] + data[at + size :],
                data[:at] + data[at : at + size] * 3 + data[at:],
                self._flipped(data),
            )
        )


async def _call(method: Any, request: bytes, ends: Counter[str]) -> None:
    try:
        await method(request, timeout=TIMEOUT)
        ends["OK"] += 1
    except grpc.aio.AioRpcError as error:
        ends[error.code().name] += 1


async def _stream(method: Any, messages: list[bytes], tally: Tally) -> None:
    async def requests() -> Any:
        for message in messages:
            yield message

    call = method(requests(), timeout=TIMEOUT)
    try:
        async for answer in call:
            tally.frames[_end(pb.DetectStreamResponse.FromString(answer))] += 1
    except grpc.aio.AioRpcError as error:
        tally.streams["(lost)" if error.details() == LOST else error.code().name] += 1
    else:
        tally.streams["OK"] += 1


def _end(answer: pb.DetectStreamResponse) -> str:
    outcome = answer.WhichOneof("outcome")
    if outcome == "error":
        return CODES[answer.error.code]
    return "OK" if outcome == "result" else "DROPPED"


async def fuzz(address: str, requests: int, mutator: Mutator) -> Tally:
    """Sends so many messages, a third of them over streams, from several callers at a time."""
    tally, left = Tally(), requests
    async with grpc.aio.insecure_channel(address, NO_PROXY) as channel:
        detect: Any = channel.unary_unary(DETECT)
        stream: Any = channel.stream_stream(STREAM)

        async def caller() -> None:
            nonlocal left
            while left > 0:
                if mutator.streams_next():
                    messages = mutator.stream()
                    left -= len(messages)
                    await _stream(stream, messages, tally)
                else:
                    left -= 1
                    await _call(detect, mutator.request(), tally.calls)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return tally


@dataclass(frozen=True)
class Server:
    """A server in a process of its own."""

    address: str
    metrics: str

    def faults(self) -> int:
        """How many calls it ended with INTERNAL or UNKNOWN by its own count."""
        with urllib.request.urlopen(self.metrics) as response:
            lines = response.read().decode().splitlines()
        codes = ('grpc_code="INTERNAL"', 'grpc_code="UNKNOWN"', 'reason="INTERNAL"')
        return sum(
            int(float(line.rpartition(" ")[2]))
            for line in lines
            if "_total{" in line and any(code in line for code in codes)
        )


async def good_calls(servers: Sequence[Server], image: bytes, count: int = GOOD_CALLS) -> list[list[float]]:
    """Milliseconds of each call to each server, in turn; raises if one fails."""
    request = pb.DetectRequest(image=pb.Image(content=image)).SerializeToString()
    channels = [grpc.aio.insecure_channel(server.address, NO_PROXY) for server in servers]
    times: list[list[float]] = [[] for _ in servers]
    for _ in range(count):
        for channel, series in zip(channels, times, strict=True):
            started = time.perf_counter()
            method: Any = channel.unary_unary(DETECT)
            await method(request, timeout=TIMEOUT)
            series.append(1000 * (time.perf_counter() - started))
    for channel in channels:
        await channel.close()
    return times


def _encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


@contextmanager
def start_server() -> Iterator[Server]:
    """Raises RuntimeError if it did not live to the end."""
    command = [sys.executable, "-m", "damoserve_server", "--port", "0", "--metrics-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = READY.search(process.stdout.readline())
            if ready is None:
                raise RuntimeError("the server did not start")
            yield Server(**ready.groupdict())
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with {process.returncode}")
        finally:
            process.terminate()


def _slower(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> float:
    """How the time of the first server grew, relative to that of the second."""
    (a, b), (c, d) = (map(statistics.median, times) for times in (before, after))
    return (c / d) / (a / b)


async def measure(requests: int, seed: int, image: Path) -> dict[str, Any]:
    picture = Image.open(image).convert("RGB")
    picture.thumbnail((320, 320))
    with start_server() as fuzzed, start_server() as other:
        before = await good_calls((fuzzed, other), image.read_bytes())
        started = time.monotonic()
        tally = await fuzz(fuzzed.address, requests, Mutator(seed, picture))
        seconds = time.monotonic() - started
        after = await good_calls((fuzzed, other), image.read_bytes())
        faults = fuzzed.faults()
    return {
        "seconds": round(seconds),
        "calls": dict(tally.calls.most_common()),
        "streams": dict(tally.streams.most_common()),
        "frames": dict(tally.frames.most_common()),
        "failures": tally.failures + faults,
        "good_calls_median_ms": {
            name: [round(statistics.median(series), 2) for series in times]
            for name, times in (("before", before), ("after", after))
        },
        "slower": round(_slower(before, after), 3),
    }


def main(
    requests: Annotated[int, typer.Option(min=1)] = 20_000,
    seed: Annotated[int, typer.Option()] = 1,
    image: Annotated[Path, typer.Option(exists=True)] = Path("docs/images/smear.jpg"),
) -> None:
    """Exit code 1 when a call or frame ended in a code that the server must not give, or good calls became slower."""
    figures = asyncio.run(measure(requests, seed, image))
    typer.echo(json.dumps(figures, indent=2))
    raise typer.Exit(1 if figures["failures"] or figures["slower"] > MAX_SLOWER else 0)


if __name__ == "__main__":
    typer.run(main)
