"""The targets whose recipes have to get past spaces, inherited variables and new files."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[2] / "Makefile"

pytestmark = pytest.mark.skipif(not (shutil.which("make") and shutil.which("git")), reason="needs make and git")

# Without what `make test` or a git hook passes on to this process.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "GIT_", "IMAGE"))
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with spaces in its path, whose `damoserve` and `generate.sh` write down how they were called."""
    root = tmp_path / "source tree"
    script(root / ".venv" / "bin" / "damoserve", 'printf "%s\\n" "$@" > arguments')
    script(root / "proto" / "generate.sh", 'cd proto; echo "${PYTHON:-}" > ../interpreter; . ./stubs.sh')
    (root / "proto" / "stubs.sh").write_text("true\n")
    (root / "proto" / "detection_pb2.py").write_text("1\n")
    (root / "Makefile").write_bytes(MAKEFILE.read_bytes())
    git(root, "init", "--quiet")
    commit(root)
    return root


def script(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nset -eu\n{body}\n")
    path.chmod(0o755)


def git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=root, env=ENVIRONMENT, check=True)


def commit(root: Path) -> None:
    git(root, "add", "proto")
    git(root, "commit", "--quiet", "--message", "x")


def make(root: Path, *arguments: str) -> int:
    # The environment counts as made.
    installed = ("--old-file", ".venv/server", "--old-file", ".venv/dev")
    return subprocess.run(["make", *installed, *arguments], cwd=root, env=ENVIRONMENT, check=False).returncode


@pytest.mark.parametrize(("image", "expected"), [([], ["demo"]), (["IMAGE=a b.jpg"], ["demo", "a b.jpg"])])
def test_the_demo_takes_any_path(tree: Path, image: list[str], expected: list[str]) -> None:
    assert make(tree, "demo", *image) == 0
    assert (tree / "arguments").read_text().splitlines() == expected


def test_stubs_are_generated_by_the_environment(tree: Path) -> None:
    assert make(tree, "proto", "PYTHON=another-python") == 0
    assert (tree / "interpreter").read_text() == "python\n"


@pytest.mark.parametrize(
    ("stubs", "passes"),
    [
        ("echo 1 > detection_pb2.py", True),
        ("echo 2 > detection_pb2.py", False),
        ("echo 1 > detection_pb2.py; echo 1 > another_pb2.py", False),
    ],
)
def test_stubs_that_are_not_committed_are_noticed(tree: Path, stubs: str, passes: bool) -> None:
    (tree / "proto" / "stubs.sh").write_text(f"{stubs}\n")
    commit(tree)
    assert (make(tree, "check-proto") == 0) is passes
