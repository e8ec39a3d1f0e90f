"""Builds the distributions of this tree."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build(project: Path, target: str, out: Path) -> Path:
    """A "wheel" or an "sdist" of the project in a folder, by the build backend of this environment."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(out)]
    result = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (built,) = out.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return built
