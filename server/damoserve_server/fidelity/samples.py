"""Samples: answers that are kept, with the network's input, until they can be compared."""

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
    """One answer: the input and the outputs of its network, and the profile that is to be run for comparison."""

    profile: ActiveProfile
    """The profile that answered."""
    reference: ActiveProfile
    """The profile that it is compared with."""
    row: NDArray[np.uint8]
    """The network's input, `[height, width, 3]`."""
    outputs: Outputs
    """Scores `[K, C]` and boxes `[K, 4]` of this image."""
    shown: Size
    """Size of the part of the row that shows the image."""

    def compare(self, reference: Outputs) -> Comparison:
        """Compares with the outputs of the reference for a batch of this row.

        Both are taken at the thresholds of the profile that answered, whatever its caller wanted, in pixels of the
        network's input.
        """
        (scores,), (boxes,) = reference
        return compare(self._select(*self.outputs), self._select(scores, boxes))

    def _select(self, scores: NDArray[np.float32], boxes: NDArray[np.float32]) -> Detections:
        return select(scores, boxes, self.profile.manifest.thresholds, self.shown, self.shown)


def comparable(profile: ActiveProfile, reference: ActiveProfile) -> bool:
    """Tells whether the reference can be run on the network input of the profile, and finds the same classes."""
    return profile.input == reference.input and profile.manifest.labels == reference.manifest.labels


class SampleRows:
    """Buffers for network inputs, up to a limit of each size; made when they are needed, and kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free: dict[Size, list[NDArray[np.uint8]]] = {}
        self._made: dict[Size, int] = {}

    def lend(self, size: Size) -> NDArray[np.uint8] | None:
        """Lends a row; returns None when all are lent."""
        free = self._free.setdefault(size, [])
        if free:
            return free.pop()
        made = self._made.get(size, 0)
        if made == self._limit:
            return None
        self._made[size] = made + 1
        return aligned((size.height, size.width, 3))

    def take_back(self, row: NDArray[np.uint8]) -> None:
        """Takes back a row that was lent."""
        height, width, _ = row.shape
        self._free[Size(width, height)].append(row)
