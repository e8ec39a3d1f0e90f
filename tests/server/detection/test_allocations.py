"""What a warm server allocates for a request. NumPy tells tracemalloc of its arrays; Pillow and the runtimes do not."""

import asyncio
import gc
import shutil
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from damoserve_profiles.golden import GOLDEN_IMAGE
from damoserve_profiles.imaging import decode
from damoserve_profiles.repository import BUNDLED
from damoserve_server.detection.detector import Detector
from damoserve_server.detection.request import DetectionRequest
from damoserve_server.inputs.images import Image
from tests.support.server import Serve

PROFILE = "blood-cells/1/int8+pruned"
FILE = (BUNDLED / PROFILE / GOLDEN_IMAGE).read_bytes()
PIXELS = decode(FILE)
ROUNDS = 20
LARGE = 64 * 1024
"""Bytes. A network input of this profile has eight times as many."""


@dataclass
class Allocated:
    """Bytes of many rounds of requests."""

    peaks: list[int]
    """What each round added at most while it lasted."""
    kept: int
    """What was still there after the last one."""


Measure = Callable[[Image, int], Allocated]
"""Function that does so many requests with this image at once, again and again."""


@pytest.fixture
def allocated(serve: Serve, tmp_path: Path) -> Measure:
    """Does so many requests at once, again and again, after some to warm up."""
    # Not the tiny network of the other tests: its buffers would not stand out.
    shutil.copytree(BUNDLED / PROFILE, tmp_path / "real" / PROFILE)

    async def one_round(detector: Detector, image: Image, at_once: int) -> None:
        now = time.monotonic()
        request = DetectionRequest(image, now, now + 20)
        assert all(
            len(each.detections.boxes)
            for each in await asyncio.gather(*(detector.detect(request) for _ in range(at_once)))
        )

    def measure(image: Image, at_once: int) -> Allocated:
        async def run() -> Allocated:
            async with serve(repository=tmp_path / "real") as client:
                detector = client.application._detector.result()
                for _ in range(5):
                    await one_round(detector, image, at_once)
                before = tracemalloc.get_traced_memory()[0]
                peaks: list[int] = []
                for _ in range(ROUNDS):
                    tracemalloc.reset_peak()
                    there = tracemalloc.get_traced_memory()[0]
                    await one_round(detector, image, at_once)
                    peaks.append(tracemalloc.get_traced_memory()[1] - there)
                gc.collect()  # tasks and their exceptions refer to each other
                return Allocated(peaks, tracemalloc.get_traced_memory()[0] - before)

        tracemalloc.start()
        try:
            return asyncio.run(run())
        finally:
            tracemalloc.stop()

    return measure


@pytest.mark.parametrize("at_once", [1, 4])
def test_pixels_cost_nothing_large(allocated: Measure, at_once: int) -> None:
    found = allocated(PIXELS, at_once)
    assert max(found.peaks) < LARGE
    assert found.kept < 4 * LARGE


def test_a_file_costs_its_pixels_and_the_copy_that_pillow_makes_of_them(allocated: Measure) -> None:
    found = allocated(FILE, 1)
    assert max(found.peaks) < 2 * PIXELS.nbytes + LARGE
    assert found.kept < 4 * LARGE
