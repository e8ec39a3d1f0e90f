"""Real engines that can be made slow, to raise or to hang while a server in another process uses them."""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles.manifest import Manifest
from damoserve_server.engines.choice import load_engine
from damoserve_server.engines.engine import Engine, EngineError, EngineOptions, Outputs

HANG_SECONDS = 3600.0


@dataclass(frozen=True)
class Switches:
    """A folder whose files tell the engines what to do; both processes look at it. Loads such engines."""

    folder: Path

    def __call__(self, model: bytes, manifest: Manifest, options: EngineOptions) -> Engine:
        return SwitchedEngine(load_engine(model, manifest, options), self)

    def slow_down(self, seconds: float) -> None:
        """From now on every batch takes at least so long."""
        (self.folder / "seconds").write_text(str(seconds))

    def arm(self, fault: str) -> None:
        """The next batch has this fault: `raise` or `hang`."""
        (self.folder / fault).touch()

    def fires(self, fault: str) -> bool:
        """Whether it was armed; it is no longer. True for one of several that ask."""
        with suppress(FileNotFoundError):
            (self.folder / fault).unlink()
            return True
        return False

    def seconds(self) -> float:
        with suppress(FileNotFoundError):
            return float((self.folder / "seconds").read_text())
        return 0.0

    def count(self, images: int) -> None:
        with (self.folder / "batches").open("a") as file:
            file.write(f"{images}\n")

    def batches(self) -> list[int]:
        """The sizes of all that was computed since the last `forget`, warm-up included."""
        with suppress(FileNotFoundError):
            return [int(line) for line in (self.folder / "batches").read_text().split()]
        return []

    def forget(self) -> None:
        (self.folder / "batches").unlink(missing_ok=True)


@dataclass(frozen=True)
class SwitchedEngine:
    """Computes what the real one does, in its own time."""

    engine: Engine
    switches: Switches

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        end = time.monotonic() + self.switches.seconds()
        self.switches.count(len(images))
        if self.switches.fires("raise"):
            raise EngineError("told to")
        if self.switches.fires("hang"):
            time.sleep(HANG_SECONDS)
        outputs = self.engine.run(images)
        time.sleep(max(0.0, end - time.monotonic()))
        return outputs
