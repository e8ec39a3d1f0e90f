"""Every program in examples/, run as its first lines say, against a real server."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from damoserve_client import Client

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PICTURE = "docs/images/smear.jpg"
TIMEOUT = 60.0
READY = re.compile(r"^serving (?P<served>.+) on (?P<address>\S+:\d+), metrics on")


class Server(Protocol):
    address: str


def run(program: str, *arguments: str) -> list[str]:
    """The lines that it prints."""
    command = [sys.executable, str(EXAMPLES / program), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_detect_prints_what_was_found_and_who_found_it(server: Server) -> None:
    *found, last = run("detect.py", PICTURE, "--budget-ms", "30000", "--address", server.address)
    assert {line.split()[0] for line in found} <= {"RBC", "WBC", "Platelets"}
    assert len(found) > 5
    assert re.fullmatch(r"\S+ in [\d.]+ ms, because most_accurate_in_time", last)


def test_detect_says_that_no_profile_is_quick_enough(server: Server) -> None:
    command = [sys.executable, "examples/detect.py", PICTURE, "--budget-ms", "0.001", "--address", server.address]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("not within 0 ms: ")


def test_stream_answers_every_frame_in_order(server: Server) -> None:
    lines = run("stream.py", PICTURE, "--frames", "6", "--address", server.address)
    assert [line.split(":")[0] for line in lines] == [str(number) for number in range(6)]


def test_asyncio_counts_over_all_pictures(server: Server) -> None:
    *each, total = run("detect_asyncio.py", PICTURE, "docs/images/profiles.jpg", "--address", server.address)
    assert {line.split(":")[0] for line in each} == {PICTURE, "docs/images/profiles.jpg"}
    assert re.fullmatch(r"in all: \{'RBC': \d+.*\}", total)


def test_triton_names_what_it_found_and_the_profile(server: Server) -> None:
    pytest.importorskip("tritonclient.grpc", reason="needs tritonclient")
    *each, last = run("detect_triton.py", PICTURE, PICTURE, "--address", server.address)
    assert each[0] == each[1]
    assert re.match(rf"{PICTURE}: (RBC|WBC|Platelets) 0\.\d\d, ", each[0])
    assert last.startswith("by ")


@contextmanager
def own_data(work: Path) -> Iterator[tuple[str, str]]:
    """The script with a training just long enough to have been one; what it serves, and where."""
    scripts = Path(sys.executable).parent
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("DAMOSERVE_")}
    environment |= {
        "PATH": f"{scripts}:{environment['PATH']}",
        "EPOCHS": "1",
        "DAMOSERVE_PORT": "0",
        "DAMOSERVE_METRICS_PORT": "0",
        "DAMOSERVE_SPLIT_SECONDS": "0",
    }
    command = ["sh", str(EXAMPLES / "own_data/run.sh"), str(work / "data"), str(work / "made")]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = next(filter(None, map(READY.match, process.stdout)), None)
            assert ready, "the script ended before it served"
            yield ready["served"], ready["address"]
        finally:
            process.kill()


@pytest.mark.skipif(
    not shutil.which("damoserve-compress", path=str(Path(sys.executable).parent)), reason="needs an installed project"
)
def test_own_data_go_from_a_folder_to_a_server(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra compress")
    run("own_data/render.py", str(tmp_path / "data"), "--train", "12", "--val", "4")
    with own_data(tmp_path) as (served, address), Client(address, timeout=TIMEOUT) as client:
        assert served in {"mine (fp32, int8)", "mine (int8, fp32)"}
        result = client.detect(tmp_path / "data/images/000000.jpg", profile="int8", score_threshold=0.0)
        assert (result.model, result.profile, result.image_size) == ("mine", "int8", (320, 240))
        assert set(result.count_by_label()) <= {"RBC", "WBC", "Platelets"}
        assert all(info.active for info in client.profiles())
