"""`damoserve top` against a real server: one sample, and live in a terminal."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from damoserve_client import Client
from tests.support.process import RunningServer
from tests.support.timeouts import PROCESS_TIMEOUT

PICTURE = Path(__file__).parents[2] / "docs/images/smear.jpg"
TOP = [sys.executable, "-c", "from damoserve_client.cli import main; main()", "top", "--interval", "0.2"]


def test_json_counts_every_request(server: RunningServer, client: Client) -> None:
    command = [*TOP, "--json", "--metrics", server.metrics]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            readings = map(json.loads, process.stdout)
            next(readings)  # what the tests before did
            for _ in range(3):
                client.detect(PICTURE, profile="int8")
            answered = 0.0
            while answered < 2.5:
                reading = next(readings)
                int8 = next(profile for profile in reading["profiles"] if profile["profile"] == "int8")
                answered += int8["rate"] * reading["seconds"]
            assert answered == pytest.approx(3)
        finally:
            process.kill()


def test_once_prints_one_sample(server: RunningServer) -> None:
    command = [*TOP, "--once", "--metrics", server.metrics]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "damoserve" in result.stdout
    assert re.search(r"^int8\+pruned +active ", result.stdout, re.MULTILINE)
    assert "\x1b" not in result.stdout
    result = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["versions"] == {"blood-cells": "1"}


@dataclass
class Terminal:
    """A command in a terminal of its own, of 80 columns."""

    process: subprocess.Popen[bytes]
    descriptor: int
    inner: int
    written: str = ""

    def press(self, key: str) -> None:
        os.write(self.descriptor, key.encode())

    def until(self, wanted: str) -> None:
        """Reads until the command has written this; what came before it is forgotten."""
        end = time.monotonic() + PROCESS_TIMEOUT
        while (found := re.search(wanted, self.written)) is None:
            assert select.select([self.descriptor], [], [], max(0, end - time.monotonic()))[0], self.written
            self.written += os.read(self.descriptor, 65536).decode(errors="replace")
        self.written = self.written[found.end() :]


@contextmanager
def terminal(metrics: str) -> Iterator[Terminal]:
    outer, inner = pty.openpty()
    termios.tcsetwinsize(inner, (24, 80))
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    with subprocess.Popen(
        [*TOP, "--metrics", metrics],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env={**environment, "TERM": "xterm-256color"},
        start_new_session=True,
    ) as process:
        try:
            yield Terminal(process, outer, inner)
        finally:
            process.kill()
            for end in (inner, outer):
                with suppress(OSError):  # a test has closed it
                    os.close(end)


@pytest.mark.parametrize(
    ("leave", "code"),
    [
        (lambda top: top.press("q"), 0),
        (lambda top: top.process.send_signal(signal.SIGINT), 0),
        (lambda top: top.process.terminate(), 128 + signal.SIGTERM),
    ],
    ids=["q", "SIGINT", "SIGTERM"],
)
def test_what_ends_it_gives_the_terminal_back(
    server: RunningServer, leave: Callable[[Terminal], Any], code: int
) -> None:
    with terminal(server.metrics) as top:
        before = termios.tcgetattr(top.descriptor)
        top.until(r"int8\+pruned")
        assert termios.tcgetattr(top.descriptor) != before
        top.press("x")  # nothing happens
        top.until(r"int8\+pruned")
        leave(top)
        top.until(r"\x1b\[\?1049l")  # leaves the alternate screen
        assert top.process.wait(PROCESS_TIMEOUT) == code
        assert termios.tcgetattr(top.descriptor) == before


def test_it_ends_with_its_terminal(server: RunningServer) -> None:
    """Whoever is told of it by no signal would run for ever, and at full speed."""
    with terminal(server.metrics) as top:
        top.until(r"int8\+pruned")
        os.close(top.inner)
        os.close(top.descriptor)
        top.process.wait(PROCESS_TIMEOUT)


def test_a_server_that_goes_stays_on_the_screen(
    start_server: Callable[..., AbstractContextManager[RunningServer]],
) -> None:
    with start_server() as server, terminal(server.metrics) as top:
        top.until(r"int8\+pruned")
        assert server.stop() == 0
        top.until("Connection refused; no metrics for .*, trying again")
        top.until(r"int8\+pruned")
        top.press("q")
        top.until(r"\x1b\[\?1049l")
        assert top.process.wait(PROCESS_TIMEOUT) == 0
