"""`damoserve demo`: one picture through every profile and every tier of a server that lives as long as the demo.

ServerDidNotStart   the server ended, or did not answer in time; the message has the end of its log
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn, get_args

import typer
from rich.console import Console

from damoserve_client import tables
from damoserve_client.client import Client
from damoserve_client.draw import Panel, annotate, sheet
from damoserve_client.errors import DeadlineExceeded, Unavailable
from damoserve_client.types import DetectionResult, ProfileInfo, Tier

SERVER = (sys.executable, "-m", "damoserve_server")
STARTUP_SECONDS = 120.0
SHUTDOWN_SECONDS = 15.0
LOG_LINES = 20


class ServerDidNotStart(Exception):
    """The server ended or did not answer in time."""


def run(image: Path, output: Path, server: Sequence[str] = SERVER) -> None:
    """Shows how the profiles and tiers answer for one image; writes `profiles.png` into `output`.

    `server` is the command to which `--port P --metrics-port M` is added. Raises ServerDidNotStart, DamoserveError,
    and SystemExit on SIGTERM. Only for the main thread.
    """
    console = Console()
    content = image.read_bytes()
    typer.echo("Starting a server ...")
    with _exit_on_sigterm(), _running_server(server) as client:
        listed = client.profiles()
        for line in tables.failures(listed):
            typer.echo(line)
        infos = [info for info in listed if info.active]
        by_profile = [(info, client.detect(content, model=info.model, profile=info.profile)) for info in infos]
        by_tier = [(tier, client.detect(content, tier=tier)) for tier in get_args(Tier)]
    picture = output / "profiles.png"
    output.mkdir(parents=True, exist_ok=True)
    sheet([_panel(content, info, result) for info, result in by_profile]).save(picture)
    typer.echo(f"\n{image} through every profile:\n")
    console.print(tables.by_profile(by_profile))
    typer.echo("\nThe same picture through every tier:\n")
    console.print(tables.by_tier(by_tier))
    typer.echo(f"\nAnnotated pictures, one for each profile: {picture}")


def _panel(content: bytes, info: ProfileInfo, result: DetectionResult) -> Panel:
    figures = f"AP {info.average_precision:.3f}, {tables.megabytes(info)} MB"
    time = tables.milliseconds(result.timings.inference)
    caption = f"{info.profile}: {figures}, {time} ms, {tables.counts(result)}"
    return Panel(caption, annotate(content, result.detections))


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    # By default SIGTERM ends the process on the spot, and the server would live on without it.
    previous = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _exit(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


@contextmanager
def _running_server(command: Sequence[str]) -> Iterator[Client]:
    port, metrics_port = _free_ports(2)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--metrics-port", str(metrics_port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(),
        )
        try:
            with Client(f"127.0.0.1:{port}") as client:
                _wait_until_ready(client, process, log)
                yield client
        finally:
            _stop(process)


def _environment() -> dict[str, str]:
    """Ours without the settings of a server, which the operator made for another one; their names have no case."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("DAMOSERVE_")}


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; held together while choosing, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_until_ready(client: Client, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    end = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < end:
        try:
            return client.wait_until_ready(timeout=0.5)
        except (DeadlineExceeded, Unavailable):
            if process.poll() is not None:
                raise ServerDidNotStart(f"the server ended with code {process.returncode}:\n{_end_of(log)}") from None
    raise ServerDidNotStart(f"the server did not answer within {STARTUP_SECONDS:.0f} s:\n{_end_of(log)}")


def _end_of(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
    if any("ModuleNotFoundError" in line for line in lines):
        lines.append("Install the server: pip install 'damoserve[server,models]'")
    return "\n".join(lines)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(SHUTDOWN_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
