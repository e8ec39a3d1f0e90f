"""Runs tests in a fork of this process, in which one module is another one; nothing on disk is changed.

What takes time to import is imported once, before the forks; nothing of ours is, so that each fork imports it anew.
"""

import importlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from hypothesis import Phase, settings

from tests.mutation.rooms import ROOT, Room

PYTEST = ("-x", "-q", "--no-header", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
"""The warning is of plugins that are imported before pytest is asked."""
HEAVY = ("cv2", "grpc", "google.protobuf", "numpy", "onnx", "onnxruntime", "PIL.Image", "prometheus_client", "pydantic")
NICE = 10
LOOK_SECONDS = 0.02


class Verdict(StrEnum):
    """What became of a mutant."""

    CAUGHT = "caught"
    SURVIVED = "survived"
    STUCK = "stuck"
    """It ran for too long, which counts as caught."""
    UNFIT = "unfit"
    """It could not be imported, which says nothing of the tests."""


@dataclass(frozen=True)
class Limits:
    """Seconds that a run may take, of processor and on the clock."""

    processor: int
    clock: float


GENEROUS = Limits(600, 1200.0)


class _Exchanged(SourceFileLoader):
    """Compiles another source than that of the file."""

    def __init__(self, room: Room, source: str) -> None:
        super().__init__(room.module, str(ROOT / room.file))
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._source, self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    """Finds one module."""

    def __init__(self, loader: SourceFileLoader) -> None:
        self._loader = loader

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        loader = self._loader
        return spec_from_file_location(fullname, loader.path, loader=loader) if fullname == loader.name else None


class _QuickFirst:
    """A plugin of pytest: most mutants fail a test with examples of its own, which takes no time."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: item.get_closest_marker("hypothesis") is not None)


def prepare() -> None:
    """To be called before the first run.

    Random tests try the same examples in every run, and look for no smaller one when one fails.
    """
    for name in HEAVY:
        importlib.import_module(name)
    settings.register_profile(
        "mutation", derandomize=True, database=None, phases=(Phase.explicit, Phase.generate), report_multiple_bugs=False
    )
    settings.load_profile("mutation")


def start(room: Room, source: str, limits: Limits, output: Path) -> int:
    """Begins to run the tests of a room on another source of it. Returns the number of the process."""
    process = os.fork()
    if process:
        return process
    os.setpgid(0, 0)  # so that what the tests start ends with it
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_CPU, (limits.processor, limits.processor))
    with output.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.meta_path.insert(0, _Finder(_Exchanged(room, source)))
    try:
        code = int(pytest.main([*PYTEST, *room.tests], plugins=[_QuickFirst()]))
    except BaseException:  # whatever it is, the parent's code is not to go on here
        traceback.print_exc()
        code = int(pytest.ExitCode.INTERNAL_ERROR)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # nothing of the parent's is to be cleaned up here


def ends(running: dict[int, float]) -> Iterator[tuple[int, Verdict]]:
    """The processes that have ended; `running` has each with the moment at which it is to be ended."""
    time.sleep(LOOK_SECONDS)
    for process, until in list(running.items()):
        if time.monotonic() > until:
            os.killpg(process, signal.SIGKILL)
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            yield process, verdict_of(status)


def whole(room: Room, output: Path) -> tuple[Verdict, Limits]:
    """Runs the tests on the source as it is, and says what a mutant may take."""
    began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = start(room, room.source(), GENEROUS, output)
    _, status = os.waitpid(process, 0)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = usage.ru_utime + usage.ru_stime - used.ru_utime - used.ru_stime
    return verdict_of(status), Limits(round(4 * processor) + 10, 10 * (time.monotonic() - began) + 60)


def verdict_of(status: int) -> Verdict:
    if os.WIFSIGNALED(status):
        return Verdict.STUCK
    match os.WEXITSTATUS(status):
        case pytest.ExitCode.OK:
            return Verdict.SURVIVED
        case pytest.ExitCode.TESTS_FAILED:
            return Verdict.CAUGHT
    return Verdict.UNFIT
