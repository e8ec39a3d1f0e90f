"""Each benchmark of serving in its shortest run. What it measures here says nothing: only that it measures."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psutil")

ROOT = Path(__file__).parents[2]
# Without what a server else measures at its start.
ENVIRONMENT = {**os.environ, "DAMOSERVE_WORKERS": "1", "DAMOSERVE_THREADS_PER_WORKER": "1"}


def benchmark(name: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Exit code 1 is a missed bar, which the load of the machine may cause."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert "Error" not in result.stderr.replace("EngineError", ""), result.stderr
    assert result.returncode in {0, 1}, result.stderr
    return result


def figures(name: str, folder: Path, *arguments: object) -> tuple[list[str], Any]:
    """The lines that it printed, and what it wrote as JSON."""
    file = folder / "figures.json"
    result = benchmark(name, *arguments, "--json", file)
    return result.stdout.splitlines(), json.loads(file.read_text())


def test_overload(tmp_path: Path) -> None:
    lines, found = figures("overload", tmp_path, "none fits", "--repeats", 1)
    assert [line.split("  ")[0] for line in lines] == ["reading", "none fits"]
    (trial,) = found["readings"]["none fits"]
    assert sum(trial["ends"].values()) == 6
    assert "OK" not in trial["ends"]


def test_bursts(tmp_path: Path) -> None:
    lines, found = figures("bursts", tmp_path, "--seconds", 1, "--rounds", 1, "--load", 0.6)
    names = ["ours", "SlackFit", "model switching"]
    names += [f"fixed {name}" for name in ("fp32", "pruned", "int8", "int8+pruned")]
    rows = found["loads"]["0.6"]
    assert sorted(rows) == sorted(names)
    assert sum(line.startswith("0.6  ") for line in lines) == len(names)
    for row in rows.values():
        assert sum(row["profiles"].values()) + row["late"] + row["refused"] == row["sent"]
    assert min(found["fp32_images_per_s"]) > 0


def test_faults(tmp_path: Path) -> None:
    lines, found = figures("faults", tmp_path, "engine raises")
    assert lines[0].split()[0] == "fault"
    assert list(found) == ["cpu", "cores", "date", "an engine raises"]
    raised = found["an engine raises"]
    assert (raised["wrong"], raised["lost"], raised["faults"]) == (0, 0, [])
    assert raised["ends"]["OK"] > 0
    assert raised["ends"]["INTERNAL INTERNAL"] > 0


def test_faults_that_do_not_exist() -> None:
    command = [sys.executable, "-m", "benchmarks.faults", "engine", "earthquake"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "earthquake" in result.stderr


def test_soak(tmp_path: Path) -> None:
    short = ("--minutes", 0.1, "--callers", 4, "--pause", 0.05, "--reload-seconds", 2)
    lines, found = figures("soak", tmp_path, *short)
    kinds = {"tier", "profile", "short deadline", "stream", "kserve", "bad image", "reload"}
    assert found["failures"] == 0
    assert kinds >= found["ends"].keys() >= {"tier", "profile", "reload"}
    assert len(found["windows"]) == 10
    assert min(one["rss"] for one in found["memory"]) > 50
    assert lines[-1].startswith("growth from minute 0.0 on: ")


def test_ceiling() -> None:
    result = benchmark("ceiling", "--rounds", 1, "--seconds", 1, "--profile", "int8+pruned")
    found = json.loads(result.stdout)
    assert found["images_per_s"]["median"] > 0
    assert found["ratio"]["median"] > 0
    assert found["p99_ms"]["median"] > 0
    assert "round 1: loop" in result.stderr


def test_pixels() -> None:
    head, *lines = benchmark("pixels", "--rounds", 1).stdout.splitlines()
    assert head.split() == ["size", "way", "kB", "pack", "unpack", "call"]
    assert len(lines) == 14
    assert all(float(line.split()[-1]) > 0 for line in lines)
