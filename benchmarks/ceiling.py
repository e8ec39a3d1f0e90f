"""What the server costs over the work itself: a plain loop against the server at saturation, on the same cores.

    python -m benchmarks.ceiling --profile int8 [--repository FOLDER] [--rounds 5]

The plain loop decodes, infers and suppresses in two threads with a session of one thread each. The server does the same
for callers over loopback, which run in a third process, all on the same cores. Rounds alternate; the ratio of each pair
is reported with its spread. Other programs disturb the clock more than the processors' time: so the processor time of
an image is reported too, for the loop, the server and the callers. Idle latency is what one caller waits beyond the
stages that the server reports.
"""

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import grpc
import numpy as np
import psutil
import typer

from benchmarks.serving import PICTURE, real_server
from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_profiles.imaging import Size, decode, resize, shown_size
from damoserve_profiles.postprocess import Detections, select
from damoserve_profiles.repository import BUNDLED, Repository
from damoserve_server.engines.choice import load_engine
from damoserve_server.engines.engine import EngineOptions

CORES = 2
CALLERS = 8
TIMEOUT_SECONDS = 30.0


class Work:
    """What every server has to do for an image, with an engine of one thread."""

    def __init__(self, root: Path, profile: str) -> None:
        """Of the newest version of the only model in this folder."""
        repository = Repository(root)
        [name] = repository.models()
        folder = repository.folder(name, repository.versions(name)[-1], profile)
        self.manifest = folder.verify()
        model = folder.model_path.read_bytes()
        self._engine = load_engine(model, self.manifest, EngineOptions(max_batch_size=1))
        self._row = np.empty((1, self.manifest.input.height, self.manifest.input.width, 3), np.uint8)

    def detect(self, encoded: bytes) -> Detections:
        manifest = self.manifest
        image = decode(encoded)
        resize(image, manifest.input.size, manifest.input.resize, out=self._row[0])
        scores, boxes = self._engine.run(self._row)
        size = Size(image.shape[1], image.shape[0])
        shown = shown_size(size, manifest.input.size, manifest.input.resize)
        return select(scores[0], boxes[0], manifest.thresholds, shown, size)


def plain(root: Path, profile: str, images: Sequence[bytes], seconds: float) -> tuple[float, float]:
    """Images a second of two threads that do nothing but the work, and the processor seconds of each."""
    works = [Work(root, profile) for _ in range(CORES)]
    counts = [0] * CORES
    end = time.monotonic() + seconds

    def loop(number: int) -> None:
        while time.monotonic() < end:
            works[number].detect(images[counts[number] % len(images)])
            counts[number] += 1

    started, used = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(CORES) as threads:
        list(threads.map(loop, range(CORES)))
    return sum(counts) / (time.monotonic() - started), (time.process_time() - used) / sum(counts)


def saturate(address: str, profile: str, images: Sequence[bytes], seconds: float) -> tuple[list[float], float]:
    """The latencies of calls that eight callers made one after the other, and the callers' processor time of each."""
    with grpc.insecure_channel(address) as channel:
        detect = pb_grpc.DetectionServiceStub(channel).Detect
        return call(lambda image: detect(_request(image, profile), timeout=TIMEOUT_SECONDS), images, seconds)


def call(detect: Callable[[bytes], object], images: Sequence[bytes], seconds: float) -> tuple[list[float], float]:
    """As `saturate`; eight threads call `detect`."""
    latencies: list[float] = []
    used = time.process_time()
    end = time.monotonic() + seconds

    def caller(number: int) -> None:
        count = number
        while time.monotonic() < end:
            started = time.perf_counter()
            detect(images[count % len(images)])
            latencies.append(time.perf_counter() - started)
            count += 1

    with ThreadPoolExecutor(CALLERS) as callers:
        list(callers.map(caller, range(CALLERS)))
    return latencies, (time.process_time() - used) / len(latencies)


def idle(address: str, profile: str, images: Sequence[bytes], calls: int) -> tuple[float, float]:
    """Medians, in milliseconds, of what a lone caller waits beyond all reported stages, and beyond inference alone."""
    beyond_stages, beyond_inference = [], []
    with grpc.insecure_channel(address) as channel:
        detect = pb_grpc.DetectionServiceStub(channel).Detect
        for number in range(calls):
            started = time.perf_counter()
            answer = detect(_request(images[number % len(images)], profile), timeout=TIMEOUT_SECONDS)
            latency = 1000 * (time.perf_counter() - started)
            timings = answer.timings
            work = [timings.decode, timings.inference, timings.postprocess]
            beyond_stages.append(latency - sum(stage.ToNanoseconds() for stage in work) / 1e6)
            beyond_inference.append(latency - timings.inference.ToNanoseconds() / 1e6)
    return statistics.median(beyond_stages), statistics.median(beyond_inference)


def _request(image: bytes, profile: str) -> pb.DetectRequest:
    return pb.DetectRequest(image=pb.Image(content=image), profile=profile)


@contextmanager
def server(repository: Path, profile: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server process that has this profile only; gives its address too."""
    with tempfile.TemporaryDirectory() as root:
        [name] = Repository(repository).models()
        [*_, version] = Repository(repository).versions(name)
        target = Path(root, name, str(version))
        target.mkdir(parents=True)
        (target / profile).symlink_to(Repository(repository).folder(name, version, profile).path.resolve())
        with real_server(repository=root, workers=CORES) as (served, _):
            yield served.address, psutil.Process(served.pid)


def main(
    profile: Annotated[str, typer.Option(help="The cheapest one is the hardest case.")] = "int8",
    repository: Annotated[Path, typer.Option(help="Folder with one model.")] = BUNDLED,
    image: Annotated[list[Path] | None, typer.Option(exists=True)] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="Of each half of a round.")] = 8.0,
) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    images = [path.read_bytes() for path in image or [PICTURE]]
    context = multiprocessing.get_context("spawn")
    ratios, rates, p99s, shares = [], [], [], []
    with server(repository, profile) as (address, process), context.Pool(1) as pool:
        pool.apply(saturate, (address, profile, images, 2.0))
        beyond_stages, beyond_inference = pool.apply(idle, (address, profile, images, 200))
        for number in range(rounds):
            ceiling, alone = pool.apply(plain, (repository, profile, images, seconds))
            before = process.cpu_times()
            latencies, callers = pool.apply(saturate, (address, profile, images, seconds))
            after = process.cpu_times()
            served = (after.user + after.system - before.user - before.system) / len(latencies)
            shares.append(alone / (served + callers))
            rate = len(latencies) / seconds
            ratios.append(rate / ceiling)
            rates.append(rate)
            p99s.append(1000 * statistics.quantiles(latencies, n=100)[98])
            typer.echo(f"round {number + 1}: loop {ceiling:6.1f}/s, server {rate:6.1f}/s = {ratios[-1]:.3f}", err=True)
            costs = f"loop {1000 * alone:.2f}, server {1000 * served:.2f}, callers {1000 * callers:.2f}"
            typer.echo(f"         processor ms an image: {costs} = {shares[-1]:.3f}", err=True)
    figures = {
        "ratio": spread(ratios),
        "processor_time_ratio": spread(shares),
        "images_per_s": spread(rates),
        "p99_ms": spread(p99s),
        "idle_beyond_stages_ms": round(beyond_stages, 2),
        "idle_beyond_inference_ms": round(beyond_inference, 2),
    }
    typer.echo(json.dumps(figures, indent=2))


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


if __name__ == "__main__":
    typer.run(main)
