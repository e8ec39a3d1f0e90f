"""Half an hour of everything that callers do, good and bad, and the server's memory meanwhile.

    python -m benchmarks.soak [--minutes 30] [--callers 8] [--reload-seconds 60] [--json FILE]

Calls by tier and by profile, detection streams, KServe v2, broken images, too short deadlines; once a minute another
version of the model is loaded. Memory is read every ten seconds: resident (RSS) and anonymous, which no other process
shares. The bar: the median RSS of the last tenth of the time is within 2 % of that of as long a time from minute 5 (a
sixth) on, and no call ends in a code that the contract does not have.
"""

import asyncio
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer

from benchmarks.serving import DOCUMENTED, MODEL, PROFILES, Server, copy_bundled, end_of, pictures, real_server, report
from damoserve.kserve.v2 import inference_pb2 as kserve_pb
from damoserve.v1 import admin_pb2, admin_pb2_grpc
from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc

SAMPLE_SECONDS = 10.0
MIN_SAMPLES = 50
"""In a shorter run, memory is read more often."""
TIMEOUT = 10.0
FRAMES = 12
OVERLOADS = (pb.StreamOptions.OVERLOAD_WAIT, pb.StreamOptions.OVERLOAD_DROP_OLDEST)
KSERVE = "/inference.GRPCInferenceService/ModelInfer"
MAX_GROWTH = 0.02


@dataclass(frozen=True)
class Memory:
    """Of the server, in MB, so many seconds after the start."""

    at: float
    rss: float
    anonymous: float


@dataclass
class Soak:
    """One run: what was sent, what came of it, and the memory."""

    server: Server
    images: Sequence[bytes]
    pause: float
    reload_seconds: float
    """0: never."""
    ends: dict[str, Counter[str]] = field(default_factory=dict)
    memory: list[Memory] = field(default_factory=list)

    async def run(self, seconds: float, callers: int) -> None:
        end = time.monotonic() + seconds
        async with self.server.channel() as channel:
            await asyncio.gather(
                self._watch(end, min(SAMPLE_SECONDS, seconds / MIN_SAMPLES)),
                self._reload(end),
                *(self._caller(channel, number, end) for number in range(callers)),
            )

    async def _caller(self, channel: grpc.aio.Channel, number: int, end: float) -> None:
        rng = random.Random(number)
        kinds: dict[str, Callable[[grpc.aio.Channel, random.Random], Awaitable[str]]] = {
            "tier": self._by_tier,
            "profile": self._by_profile,
            "short deadline": self._hurried,
            "stream": self._stream,
            "kserve": self._kserve,
            "bad image": self._broken,
        }
        while time.monotonic() < end:
            kind = rng.choices(list(kinds), weights=(6, 6, 2, 1, 3, 2))[0]
            try:
                ended = await kinds[kind](channel, rng)
            except grpc.aio.AioRpcError as error:
                ended = end_of(error)
            self.ends.setdefault(kind, Counter())[ended] += 1
            await asyncio.sleep(rng.expovariate(1 / self.pause))

    async def _detect(self, channel: grpc.aio.Channel, timeout: float, content: bytes, **fields: Any) -> str:
        request = pb.DetectRequest(image=pb.Image(content=content), **fields)
        await pb_grpc.DetectionServiceStub(channel).Detect(request, timeout=timeout)
        return "OK"

    async def _by_tier(self, channel: grpc.aio.Channel, rng: random.Random) -> str:
        return await self._detect(channel, TIMEOUT, rng.choice(self.images), latency_tier=rng.choice((1, 2, 3)))

    async def _by_profile(self, channel: grpc.aio.Channel, rng: random.Random) -> str:
        return await self._detect(channel, TIMEOUT, rng.choice(self.images), profile=rng.choice(PROFILES))

    async def _hurried(self, channel: grpc.aio.Channel, rng: random.Random) -> str:
        return await self._detect(channel, rng.uniform(0.001, 0.05), rng.choice(self.images))

    async def _broken(self, channel: grpc.aio.Channel, rng: random.Random) -> str:
        whole = rng.choice(self.images)
        cut = whole[: rng.randrange(len(whole) // 2)]
        return await self._detect(channel, TIMEOUT, rng.choice((cut, b"", rng.randbytes(10_000))))

    async def _stream(self, channel: grpc.aio.Channel, rng: random.Random) -> str:
        async def frames() -> AsyncIterator[pb.DetectStreamRequest]:
            yield pb.DetectStreamRequest(options=pb.StreamOptions(on_overload=rng.choice(OVERLOADS)))
            for number in range(FRAMES):
                yield pb.DetectStreamRequest(frame=pb.Frame(id=number, image=pb.Image(content=rng.choice(self.images))))

        leaves = rng.random() < 0.2
        call = pb_grpc.DetectionServiceStub(channel).DetectStream(frames(), timeout=TIMEOUT)
        async for answer in call:
            if leaves and answer.frame_id >= FRAMES // 2:
                call.cancel()
                return "CANCELLED by us"
        return "OK"

    async def _kserve(self, channel: grpc.aio.Channel, rng: random.Random) -> str:
        image = rng.choice(self.images)
        tensor = kserve_pb.ModelInferRequest.InferInputTensor(name="images", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(image)
        request = kserve_pb.ModelInferRequest(model_name=MODEL, inputs=[tensor])
        infer: Any = channel.unary_unary(KSERVE, kserve_pb.ModelInferRequest.SerializeToString)
        await infer(request, timeout=TIMEOUT)
        return "OK"

    async def _reload(self, end: float) -> None:
        """Serves versions 1 and 2 in turn."""
        version = 2
        async with grpc.aio.insecure_channel(self.server.admin) as channel:
            admin = admin_pb2_grpc.AdminServiceStub(channel)
            while self.reload_seconds and time.monotonic() + self.reload_seconds < end:
                await asyncio.sleep(self.reload_seconds)
                await admin.ReloadModel(admin_pb2.ReloadModelRequest(model=MODEL, version=version), timeout=120)
                self.ends.setdefault("reload", Counter())["OK"] += 1
                version = 3 - version

    async def _watch(self, end: float, interval: float) -> None:
        started = time.monotonic()
        while time.monotonic() < end:
            self.memory.append(_memory(self.server.pid, time.monotonic() - started))
            await asyncio.sleep(interval)

    def failures(self) -> int:
        return sum(
            count
            for kind in self.ends.values()
            for ended, count in kind.items()
            if ended.split(" ")[0] not in DOCUMENTED
        )


def _memory(pid: int, at: float) -> Memory:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kilobytes = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines[1:])}
    return Memory(round(at, 1), round(kilobytes["Rss"] * 1.024e-3, 1), round(kilobytes["Anonymous"] * 1.024e-3, 1))


def _windows(memory: Sequence[Memory], seconds: float) -> list[tuple[float, float, float, float]]:
    """Start, median RSS, median of the anonymous and largest RSS of each tenth of the time."""
    found = []
    for tenth in range(10):
        inside = [one for one in memory if tenth * seconds / 10 <= one.at < (tenth + 1) * seconds / 10]
        rss, anonymous = (statistics.median(getattr(one, name) for one in inside) for name in ("rss", "anonymous"))
        found.append(
            (round(tenth * seconds / 600, 2), round(rss, 1), round(anonymous, 1), max(one.rss for one in inside))
        )
    return found


def _growth(memory: Sequence[Memory], seconds: float) -> float:
    """From a tenth of the time that starts after a sixth of it to the last tenth, by the median RSS."""
    first = [one.rss for one in memory if seconds / 6 <= one.at < seconds / 6 + seconds / 10]
    last = [one.rss for one in memory if one.at >= seconds * 0.9]
    return statistics.median(last) / statistics.median(first) - 1


def main(
    minutes: Annotated[float, typer.Option(min=0.1)] = 30.0,
    callers: Annotated[int, typer.Option(min=1)] = 8,
    pause: Annotated[float, typer.Option(help="Mean seconds that a caller waits between calls.")] = 0.5,
    reload_seconds: Annotated[float, typer.Option(min=0, help="Between two reloads. 0: none.")] = 60.0,
    file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Exit code 1 if memory grew by more than 2 %, or a call ended in a code that the contract does not have."""
    with tempfile.TemporaryDirectory() as folder:
        copy_bundled(Path(folder), versions=(1, 2))
        with real_server(repository=folder) as (server, _):
            soak = Soak(server, pictures(), pause, reload_seconds)
            asyncio.run(soak.run(60 * minutes, callers))
    growth = _growth(soak.memory, 60 * minutes)
    windows = _windows(soak.memory, 60 * minutes)
    for kind, ends in soak.ends.items():
        typer.echo(f"{kind}: {dict(ends.most_common())}")
    heads = ("from minute", "median RSS MB", "median anonymous MB", "largest RSS MB")
    figures = {
        "ends": soak.ends,
        "failures": soak.failures(),
        "growth": round(growth, 4),
        "windows": [dict(zip(heads, window, strict=True)) for window in windows],
        "memory": [vars(one) for one in soak.memory],
    }
    report(figures, [heads, *windows], file)
    typer.echo(f"growth from minute {minutes / 6:.1f} on: {100 * growth:+.2f} %; failures: {soak.failures()}")
    raise typer.Exit(1 if growth > MAX_GROWTH or soak.failures() else 0)


if __name__ == "__main__":
    typer.run(main)
