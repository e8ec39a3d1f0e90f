"""`damoserve demo`: one picture through every profile and every tier of a server that lives as long as the demo.

ServerDidNotStart   the server ended, or did not answer in time; the message has the end of its log
"""

import os
import re
import signal
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
from damoserve_client.types import DetectionResult, ProfileInfo, Tier

SERVER = (sys.executable, "-m", "damoserve_server")
STARTUP_SECONDS = 120.0
SHUTDOWN_SECONDS = 15.0
POLL_SECONDS = 0.05
LOG_LINES = 20
READY = re.compile(r"^serving .* on (?P<address>\S+:\d+), metrics on ", re.MULTILINE)
"""Line of a server that is ready; it chooses its ports itself, since one that was free may be taken by then."""


class ServerDidNotStart(Exception):
    """The server ended or did not answer in time."""


def run(image: Path, output: Path, server: Sequence[str] = SERVER) -> None:
    """Shows how the profiles and tiers answer for one image; writes `profiles.png` into `output`.

    `server` is the command to which `--port 0 --metrics-port 0` is added; it prints where it serves once it is ready.
    Raises ServerDidNotStart, DamoserveError, and SystemExit on SIGTERM. Only for the main thread.
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
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--port", "0", "--metrics-port", "0"], stdout=log, stderr=subprocess.STDOUT, env=_environment()
        )
        try:
            with Client(_wait_for_address(process, log)) as client:
                yield client
        finally:
            _stop(process)


def _environment() -> dict[str, str]:
    """Ours without the settings of a server, which the operator made for another one; their names have no case."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("DAMOSERVE_")}


def _wait_for_address(process: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    """Returns the address that the server says it serves on, once all of its profiles are warm."""
    end = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < end:
        ended = process.poll() is not None
        if ready := READY.search(_content_of(log)):
            return ready["address"]
        if ended:
            raise ServerDidNotStart(f"the server ended with code {process.returncode}:\n{_end_of(log)}")
        time.sleep(POLL_SECONDS)
    raise ServerDidNotStart(f"the server did not answer within {STARTUP_SECONDS:.0f} s:\n{_end_of(log)}")


def _content_of(log: IO[bytes]) -> str:
    # Not by seeking: the server writes at the same position.
    return os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode(errors="replace")


def _end_of(log: IO[bytes]) -> str:
    lines = _content_of(log).splitlines()[-LOG_LINES:]
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
