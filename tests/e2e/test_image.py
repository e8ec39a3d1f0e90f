"""The server's container image, built and run as a careful operator would: `make check-image`.

DAMOSERVE_CONTAINERS is the command of the engine, `podman` or `docker`, with options of its own if it needs some;
without it these tests are skipped. DAMOSERVE_IMAGE names an image that is there already; otherwise it is built, with
what DAMOSERVE_IMAGE_BUILD has for `build`. DAMOSERVE_IMAGE_RUN is for `run`.
"""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.serving import PICTURE, PROFILES, READY, free_port
from damoserve_client import Client
from tests.support.expressions import ROOT

ENGINE = shlex.split(os.environ.get("DAMOSERVE_CONTAINERS", ""))
BUILD = shlex.split(os.environ.get("DAMOSERVE_IMAGE_BUILD", ""))
RUN = shlex.split(os.environ.get("DAMOSERVE_IMAGE_RUN", ""))
LARGEST = 650e6
"""Bytes of the image, its base included."""
NAME = f"damoserve-check-{os.getpid()}"
CAREFUL = "--rm --read-only --tmpfs /tmp --cap-drop all --security-opt no-new-privileges --memory 2g"
STOP_SECONDS = 30
REMOVAL_SECONDS = 300
"""The engine's own process ends once the container's files are removed, which some storage takes long for."""
CACHES = "find / -xdev ( -path /var/cache/apt/* -o -path /var/lib/apt/lists/* -o -path /root/.cache/* ) -type f"
COMPILERS = "find / -xdev ( -name gcc* -o -name cc -o -name g++* -o -name clang* ) -path */bin/* -print"

# Building alone may take minutes.
pytestmark = [
    pytest.mark.skipif(not ENGINE, reason="DAMOSERVE_CONTAINERS names no engine for containers: make check-image"),
    pytest.mark.timeout(1800),
]


def engine(*arguments: str | Path) -> str:
    """What the engine prints; fails if it fails."""
    done = subprocess.run([*ENGINE, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Container:
    """A container that serves, and the engine's own process, which ends with its exit code."""

    process: subprocess.Popen[str]
    address: str
    log: Path

    def inside(self, *command: str, user: str | None = None) -> str:
        """What a command prints in there; as the image's user, unless another is named."""
        return engine("exec", *(("--user", user) if user else ()), NAME, *command)


@contextmanager
def run_container(image: str, log: Path) -> Iterator[Container]:
    port, metrics_port = free_port(), free_port()
    # Both, so that it is the same in the host's network, where nothing is published.
    ports = [f"--env=DAMOSERVE_PORT={port}", f"--env=DAMOSERVE_METRICS_PORT={metrics_port}"]
    published = [f"--publish=127.0.0.1:{number}:{number}" for number in (port, metrics_port)]
    command = [*ENGINE, "run", f"--name={NAME}", *CAREFUL.split(), *ports, *published, *RUN, image]
    with (
        log.open("w") as written,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=written, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            assert READY.search(process.stdout.readline()), log.read_text()
            yield Container(process, f"127.0.0.1:{port}", log)
        finally:
            if process.poll() is None:
                subprocess.run([*ENGINE, "kill", NAME], capture_output=True, check=False)
                process.wait(REMOVAL_SECONDS)


@pytest.fixture(scope="module")
def image() -> str:
    if named := os.environ.get("DAMOSERVE_IMAGE"):
        return named
    # Podman's own format has no health checks.
    health = ["--format", "docker"] if Path(ENGINE[0]).name == "podman" else []
    engine("build", *health, *BUILD, "--target", "server", "--tag", "damoserve:checked", ".")
    return "damoserve:checked"


@pytest.fixture(scope="module")
def container(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    with run_container(image, tmp_path_factory.mktemp("container") / "log") as running:
        yield running


def test_the_image_is_small(image: str) -> None:
    assert int(engine("image", "inspect", "--format", "{{.Size}}", image)) < LARGEST


def test_every_profile_answers_from_outside(container: Container) -> None:
    with Client(container.address) as client:
        for profile in PROFILES:
            answer = client.detect(ROOT / PICTURE, profile=profile, timeout=30)
            assert answer.profile == profile
            assert answer.detections


def test_the_server_is_the_images_user_and_can_do_nothing_else(container: Container) -> None:
    status = container.inside("cat", "/proc/1/status")
    lines = dict(re.findall(r"^(\w+):\s+(.+)$", status, re.MULTILINE))
    assert lines["Name"] == "damoserve"
    assert set(lines["Uid"].split()) == {"10001"}
    assert {int(lines[kind], 16) for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert lines["NoNewPrivs"] == "1"


def test_nothing_but_the_temporary_folder_can_be_written(container: Container) -> None:
    mounts = [line.split() for line in container.inside("cat", "/proc/1/mounts").splitlines()]
    (options,) = [options.split(",") for _, folder, _, options, *_ in mounts if folder == "/"]
    assert "ro" in options


def test_the_health_command_passes(container: Container) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    command = json.loads(re.findall(r"^HEALTHCHECK .* CMD (\[.+\])$", dockerfile, re.MULTILINE)[-1])
    assert container.inside(*command).endswith(": SERVING\n")


def test_one_opencv_no_compilers_no_caches(container: Container) -> None:
    libraries = container.inside("find", "/", "-xdev", "-name", "cv2*.so", user="0").split()
    assert len(libraries) == 1, libraries
    assert container.inside(*COMPILERS.split(), user="0") == ""
    assert container.inside(*CACHES.split(), user="0") == ""


def test_on_sigterm_it_drains_and_ends_well(container: Container) -> None:
    with Client(container.address) as client:
        assert client.detect(ROOT / PICTURE, timeout=30).detections
    engine("stop", "--time", str(STOP_SECONDS), NAME)
    assert container.process.wait(REMOVAL_SECONDS) == 0
    log = container.log.read_text()
    assert 'stopping signal="SIGTERM"' in log
    assert re.search(r"stopped seconds=\S+ answered=\d+ refused=0 abandoned=0 failed=0", log)
