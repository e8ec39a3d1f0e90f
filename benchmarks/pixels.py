"""What it costs to send pixels: as BMP, as PNG of several levels, and as JPEG, which loses some.

    python -m benchmarks.pixels [--rounds 12]

The picture is the sample enlarged, with noise of a standard deviation of 3 as a camera has it. A call is one of
`Client.detect` with `int8+pruned` on the bundled model, packing included, the server on this machine. Medians, in ms;
all ways take turns.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.serving import PICTURE, real_server, report
from damoserve_client import Client

PROFILE = "int8+pruned"
SIZES = ((640, 480), (1920, 1080))
RUN_LENGTHS = 3
"""zlib's strategy Z_RLE."""
WAYS: dict[str, dict[str, Any]] = {
    "BMP": {"format": "BMP"},
    **{f"PNG {level}": {"format": "PNG", "compress_level": level} for level in (0, 1, 3, 6)},
    "PNG 1, Z_RLE": {"format": "PNG", "compress_level": 1, "compress_type": RUN_LENGTHS},
    "JPEG 90": {"format": "JPEG", "quality": 90},
}


@dataclass
class Costs:
    """Of one way to pack one picture, in seconds, and the bytes of the file."""

    pack: list[float] = field(default_factory=list)
    unpack: list[float] = field(default_factory=list)
    call: list[float] = field(default_factory=list)
    size: int = 0

    def measure(self, picture: Image.Image, options: dict[str, Any], client: Client) -> None:
        content = _timed(self.pack, lambda: _packed(picture, options))
        self.size = len(content)
        _timed(self.unpack, lambda: Image.open(io.BytesIO(content)).load())
        _timed(self.call, lambda: client.detect(_packed(picture, options), profile=PROFILE))


def _packed(picture: Image.Image, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    picture.save(file, **options)
    return file.getvalue()


def _timed(times: list[float], work: Callable[[], Any]) -> Any:
    begin = time.perf_counter()
    result = work()
    times.append(time.perf_counter() - begin)
    return result


def picture_of(size: tuple[int, int]) -> Image.Image:
    pixels = np.asarray(Image.open(PICTURE).convert("RGB").resize(size)).astype(float)
    noise = np.random.default_rng(0).normal(0, 3, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    rows: list[list[object]] = [["size", "way", "kB", "pack", "unpack", "call"]]
    with real_server() as (server, _), Client(server.address) as client:
        for size in SIZES:
            picture = picture_of(size)
            costs = {way: Costs() for way in WAYS}
            for _ in range(rounds):
                for way, options in WAYS.items():
                    costs[way].measure(picture, options, client)
            for way, cost in costs.items():
                times = (f"{1e3 * statistics.median(each):.1f}" for each in (cost.pack, cost.unpack, cost.call))
                rows.append(["x".join(map(str, size)), way, f"{cost.size / 1e3:.0f}", *times])
    report({}, rows, None)


if __name__ == "__main__":
    main()
