"""What the experiments with live servers share: servers in processes of their own, calls and their ends, tables."""

import asyncio
import datetime
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import uvloop
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from damoserve_compress.measure.timing import cpu_name
from damoserve_profiles.manifest import MANIFEST_FILE
from damoserve_profiles.repository import BUNDLED, Repository
from damoserve_server.app import Application
from damoserve_server.configuration.settings import Settings
from damoserve_server.engines.choice import load_engine as usual_engine
from damoserve_server.engines.engine import EngineLoader
from damoserve_server.scheduling.policy import Policy

MODEL = "blood-cells"
PROFILES = ("fp32", "pruned", "int8", "int8+pruned")
PICTURE = Path("docs/images/smear.jpg")
NO_PROXY = (("grpc.enable_http_proxy", 0),)
READY = re.compile(r"serving .* on (?P<address>\S+:\d+), metrics on (?P<metrics>\S+)")
START_SECONDS = 120.0
STOP_SECONDS = 30.0
DOCUMENTED = {
    "OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "INVALID_ARGUMENT", "NOT_FOUND",
    "FAILED_PRECONDITION", "CANCELLED", "ABORTED",
}  # fmt: skip
"""Ends that the contract knows. INTERNAL is one, too, but only an engine may cause it."""


@dataclass(frozen=True)
class Server:
    """A server in a process of its own."""

    address: str
    metrics: str
    admin: str
    pid: int

    def samples(self) -> "Samples":
        with urllib.request.urlopen(self.metrics, timeout=STOP_SECONDS) as response:
            return Samples(response.read().decode())

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self.address, NO_PROXY)


class Samples:
    """A server's metrics at one moment."""

    def __init__(self, text: str) -> None:
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def sum(self, name: str, **labels: str) -> int:
        """Over all series of this name with these labels."""
        return int(sum(s.value for s in self._samples if s.name == name and labels.items() <= s.labels.items()))


async def open_loop(times: Sequence[float], call: Callable[[float], Coroutine[Any, Any, None]]) -> None:
    """Begins a call at each of these times, in seconds from now, whether or not earlier ones have ended.

    `call` is told when it was to begin, on the monotonic clock: it may have been later.
    """
    started = time.monotonic()
    async with asyncio.TaskGroup() as calls:
        for at in times:
            await asyncio.sleep(max(0.0, started + at - time.monotonic()))
            calls.create_task(call(started + at))


@contextmanager
def real_server(**settings: Any) -> Iterator[tuple[Server, "subprocess.Popen[str]"]]:
    """`python -m damoserve_server` with these settings, an admin service and ports of its own choice.

    Raises RuntimeError if it does not start.
    """
    admin = free_port()
    given = {"port": 0, "metrics_port": 0, "admin_port": admin} | settings
    environment = os.environ | {f"DAMOSERVE_{name.upper()}": str(value) for name, value in given.items()}
    command = [sys.executable, "-m", "damoserve_server", "--log-level", "error"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            ready = READY.search(process.stdout.readline())
            if ready is None:
                raise RuntimeError("the server did not start")
            yield Server(**ready.groupdict(), admin=f"127.0.0.1:{admin}", pid=process.pid), process
        finally:
            process.terminate()


@contextmanager
def made_server(
    settings: Mapping[str, Any],
    load_engine: EngineLoader = usual_engine,
    policy: Policy | None = None,
) -> Iterator[Server]:
    """A server with an engine or a policy that is not the usual. All must be importable from another process.

    Raises RuntimeError if it does not start.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(dict(settings), load_engine, policy, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(START_SECONDS):
            raise RuntimeError("the server did not start")
        port, metrics, admin = ours.recv()
        addresses = (f"127.0.0.1:{port}", f"http://127.0.0.1:{metrics}/metrics", f"127.0.0.1:{admin}")
        yield Server(*addresses, pid=process.pid or 0)
    finally:
        process.terminate()
        process.join(STOP_SECONDS)


def _serve(settings: dict[str, Any], load_engine: EngineLoader, policy: Policy | None, pipe: Connection) -> None:
    async def run() -> None:
        terminated = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
        free: dict[str, Any] = {"port": 0, "metrics_port": 0, "admin_port": 0}
        async with Application(Settings(**(free | settings)), load_engine, policy) as server:
            pipe.send((server.port, server.metrics_port, server.admin_port))
            await terminated.wait()

    uvloop.run(run())  # as the command does


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def copy_bundled(
    root: Path,
    versions: Sequence[int] = (1,),
    profiles: Sequence[str] = PROFILES,
    accuracies: Mapping[str, float] | None = None,
) -> Path:
    """The bundled model, or some profiles of it, as a repository at `root`, the same in every version.

    `accuracies` replaces the average precision that the manifests state.
    """
    for version in versions:
        for folder in (Repository(BUNDLED).folder(MODEL, 1, profile) for profile in profiles):
            target = Repository(root).folder(MODEL, version, folder.profile)
            shutil.copytree(folder.path, target.path)
            manifest = json.loads((folder.path / MANIFEST_FILE).read_text())
            manifest["version"] = version
            if accuracies:
                manifest["accuracy"]["ap"] = accuracies[folder.profile]
            (target.path / MANIFEST_FILE).write_text(json.dumps(manifest))
    return root


def pictures(sizes: Sequence[int] = (640, 480, 320)) -> list[bytes]:
    """The bundled picture as JPEG, so many pixels wide."""
    whole = Image.open(PICTURE).convert("RGB")
    files = []
    for width in sizes:
        buffer = io.BytesIO()
        whole.resize((width, width * whole.height // whole.width)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def reason(error: grpc.aio.AioRpcError) -> str:
    """The reason in an error's details; empty where gRPC itself ended the call."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return ""


def end_of(error: grpc.aio.AioRpcError) -> str:
    """Code and reason."""
    return f"{error.code().name} {reason(error)}".strip()


def report(figures: dict[str, Any], table: Sequence[Sequence[object]], file: Path | None) -> None:
    """Prints a table, its first row the heads; writes the figures as JSON, with the machine and the date."""
    widths = [max(len(str(row[column])) for row in table) for column in range(len(table[0]))]
    for row in table:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    today = datetime.date.today().isoformat()
    machine = {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "date": today}
    if file is not None:
        file.write_text(json.dumps(machine | figures, indent=1) + "\n")
