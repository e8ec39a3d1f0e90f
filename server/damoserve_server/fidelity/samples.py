"""What is kept of an answer until it can be compared."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles.agreement import Comparison, compare
from damoserve_profiles.imaging import Size
from damoserve_profiles.postprocess import Detections, select
from damoserve_server.engines.engine import Outputs
from damoserve_server.inputs.buffers import aligned
from damoserve_server.models.catalogue import ActiveProfile


@dataclass(frozen=True, eq=False)
class Sample:
    """What the network was given and gave, and the profile that this is to be compared with."""

    profile: ActiveProfile
    reference: ActiveProfile
    row: NDArray[np.uint8]
    outputs: Outputs
    """Of this image, `[K, C]` and `[K, 4]`."""
    shown: Size
    """How much of the row shows the image."""

    def compare(self, reference: Outputs) -> Comparison:
        """With what the reference gives for a batch of this row.

        Both at the thresholds of the profile that answered, whatever its caller wanted, in pixels of the network's
        input.
        """
        (scores,), (boxes,) = reference
        return compare(self._select(*self.outputs), self._select(scores, boxes))

    def _select(self, scores: NDArray[np.float32], boxes: NDArray[np.float32]) -> Detections:
        return select(scores, boxes, self.profile.manifest.thresholds, self.shown, self.shown)


def comparable(profile: ActiveProfile, reference: ActiveProfile) -> bool:
    """Whether the one can be run on the network input of the other, and finds the same classes."""
    return profile.input == reference.input and profile.manifest.labels == reference.manifest.labels


class SampleRows:
    """Buffers for network inputs, a number of each size; made when they are needed, and kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free: dict[Size, list[NDArray[np.uint8]]] = {}
        self._made: dict[Size, int] = {}

    def lend(self, size: Size) -> NDArray[np.uint8] | None:
        """None when all are lent."""
        free = self._free.setdefault(size, [])
        if free:
            return free.pop()
        made = self._made.get(size, 0)
        if made == self._limit:
            return None
        self._made[size] = made + 1
        return aligned((size.height, size.width, 3))

    def take_back(self, row: NDArray[np.uint8]) -> None:
        height, width, _ = row.shape
        self._free[Size(width, height)].append(row)
