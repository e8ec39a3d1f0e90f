"""What is mutated, and the tests that are to notice."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Room:
    """A source file, and its tests, those first that notice most in the least time."""

    root: str
    """The folder that Python imports from."""
    path: str
    """Below that folder."""
    tests: Sequence[str]

    @property
    def file(self) -> str:
        return f"{self.root}/{self.path}"

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").replace("/", ".")

    def source(self) -> str:
        return (ROOT / self.file).read_text()

    def fingerprint(self) -> str:
        """Of all that decides which mutants are noticed, as far as it lies in these files."""
        texts = [self.source(), *((ROOT / test.split("::")[0]).read_text() for test in self.tests)]
        return sha256("\0".join(texts).encode()).hexdigest()[:16]


def _of_server(path: str, *tests: str) -> Room:
    room = path.rpartition("/")[0]
    return Room("server", f"damoserve_server/{path}", [f"tests/server/{room}/{test}" for test in tests])


SCHEDULER, POLICIES = "test_scheduler.py", "test_policies.py"
ROOMS = (
    _of_server("scheduling/selection.py", "test_selection.py"),
    _of_server("scheduling/latency.py", "test_latency.py", SCHEDULER),
    _of_server("scheduling/policy.py", "test_policy.py", SCHEDULER, POLICIES),
    _of_server("scheduling/scheduler.py", SCHEDULER, POLICIES),
    _of_server("scheduling/ranking.py", "test_deadline.py", SCHEDULER, POLICIES),
    _of_server("scheduling/deadline.py", "test_deadline.py", SCHEDULER, POLICIES),
    _of_server("v1/convert.py", "test_convert.py", "test_errors.py", "test_detect.py"),
    _of_server("v1/window.py", "test_window.py"),
    _of_server("kserve/statistics.py", "test_kserve_statistics.py"),
    Room("profiles", "damoserve_profiles/postprocess.py", ["tests/profiles/test_postprocess.py"]),
)
