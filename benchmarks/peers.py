"""The same work behind other servers, on the same cores: what does each leave of a plain loop?

    python -m benchmarks.peers --profile int8 [--repository FOLDER] [--rounds 5]

`grpc.aio` is the least that one would write: a handler that hands the image to one of two threads, each with an engine
of its own. mosec (`pip install mosec`; left out where it is missing) has a server in Rust and two worker processes,
called over HTTP. All run our decoding, engine and suppression, and answer eight callers; rounds alternate.
"""

import asyncio
import http.client
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

import grpc
import typer

from benchmarks.ceiling import CORES, TIMEOUT_SECONDS, Work, call, plain, saturate, server, spread
from benchmarks.serving import PICTURE, START_SECONDS, free_port
from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_profiles.repository import BUNDLED
from damoserve_server.v1.convert import add_detections

FOLDER, PROFILE = "PEERS_FOLDER", "PEERS_PROFILE"
"""Variables of the environment: mosec starts its workers by itself."""


class Naive(pb_grpc.DetectionServiceServicer):
    """No queue, no deadlines, no metrics, no choice."""

    def __init__(self, root: Path, profile: str) -> None:
        self._own = threading.local()
        self._threads = ThreadPoolExecutor(CORES, initializer=lambda: setattr(self._own, "work", Work(root, profile)))

    async def Detect(self, request: pb.DetectRequest, context: Any) -> pb.DetectResponse:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._detect, request.image.content)

    def DetectStream(self, request_iterator: Any, context: Any) -> NoReturn:
        raise NotImplementedError

    def _detect(self, image: bytes) -> pb.DetectResponse:
        response = pb.DetectResponse()
        work = self._own.work
        add_detections(response, work.detect(image), work.manifest.labels)
        return response


async def serve_naively(root: Path, profile: str, port: int) -> None:
    naive = grpc.aio.server()
    pb_grpc.add_DetectionServiceServicer_to_server(Naive(root, profile), naive)
    naive.add_insecure_port(f"127.0.0.1:{port}")
    await naive.start()
    await naive.wait_for_termination()


def serve_mosec() -> None:
    import mosec

    class Detect(mosec.Worker):  # type: ignore[misc, unused-ignore]  # mosec may be missing
        def __init__(self) -> None:
            self._work = Work(Path(os.environ[FOLDER]), os.environ[PROFILE])

        def deserialize(self, data: bytes) -> bytes:
            return data

        def forward(self, data: bytes) -> bytes:
            found = self._work.detect(data)
            columns = {name: getattr(found, name).tolist() for name in ("boxes", "scores", "labels")}
            return json.dumps(columns).encode()

        def serialize(self, data: bytes) -> bytes:
            return data

    # By `fork`: the class is made here, where mosec is known to be there.
    peer = mosec.Server()
    peer.append_worker(Detect, num=CORES, start_method="fork")
    peer.run()


def saturate_mosec(port: int, images: Sequence[bytes], seconds: float) -> tuple[list[float], float]:
    """As `ceiling.saturate`, over HTTP; each caller keeps its connection."""
    own = threading.local()

    def detect(image: bytes) -> object:
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
        own.connection.request("POST", "/inference", image)
        answer = own.connection.getresponse()
        if answer.status != http.client.OK:
            raise RuntimeError(f"mosec answered {answer.status}")
        return json.loads(answer.read())

    return call(detect, images, seconds)


@contextmanager
def peer(name: str, repository: Path, profile: str) -> Iterator[int]:
    """A process that serves; gives its port."""
    port = free_port()
    environment = os.environ | {FOLDER: str(repository), PROFILE: profile, "MOSEC_PORT": str(port)}
    command = [sys.executable, "-m", "benchmarks.peers", "--serve", name, "--port", str(port)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _await(port)
            yield port
        finally:
            process.terminate()


def _await(port: int) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def main(
    profile: Annotated[str, typer.Option(help="The cheapest one is the hardest case.")] = "int8",
    repository: Annotated[Path, typer.Option(help="Folder with one model.")] = BUNDLED,
    image: Annotated[list[Path] | None, typer.Option(exists=True)] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    seconds: Annotated[float, typer.Option(min=1, help="Of each server in each round.")] = 8.0,
) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    images = [path.read_bytes() for path in image or [PICTURE]]
    with ExitStack() as stack:
        address, _ = stack.enter_context(server(repository, profile))
        naive = stack.enter_context(peer("naive", repository, profile))
        contenders: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "damoserve": (saturate, (address, profile)),
            "grpc.aio": (saturate, (f"127.0.0.1:{naive}", profile)),
        }
        if find_spec("mosec") is not None:
            contenders["mosec"] = (saturate_mosec, (stack.enter_context(peer("mosec", repository, profile)),))
        pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(1))
        for measure, where in contenders.values():
            pool.apply(measure, (*where, images, 2.0))  # engines are made at the first image
        ratios: dict[str, list[float]] = {name: [] for name in contenders}
        p99s: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(rounds):
            ceiling, _ = pool.apply(plain, (repository, profile, images, seconds))
            for name, (measure, where) in contenders.items():
                latencies, _ = pool.apply(measure, (*where, images, seconds))
                ratios[name].append(len(latencies) / seconds / ceiling)
                p99s[name].append(1000 * statistics.quantiles(latencies, n=100)[98])
            shares = ", ".join(f"{name} {found[-1]:.3f}" for name, found in ratios.items())
            typer.echo(f"round {number + 1}: loop {ceiling:.1f}/s, of it {shares}", err=True)
    figures = {name: {"ratio": spread(ratios[name]), "p99_ms": spread(p99s[name])} for name in contenders}
    typer.echo(json.dumps(figures, indent=2))


if __name__ == "__main__":
    if "--serve" not in sys.argv:
        typer.run(main)
    elif "naive" in sys.argv:
        asyncio.run(serve_naively(Path(os.environ[FOLDER]), os.environ[PROFILE], int(sys.argv[-1])))
    else:
        sys.argv[1:] = []  # mosec reads them
        serve_mosec()
