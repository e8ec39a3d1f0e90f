"""Trained networks as a build handles them: one frozen object for each file, handed from step to step.

A step needs the network itself, what it was trained for, and the hash by which its result is kept. A path alone would
have every step read and hash the file anew, and trust that nobody has replaced it in between.
"""

from dataclasses import dataclass, field
from pathlib import Path

from damoserve_compress.build.errors import BuildError
from damoserve_compress.datasets import Dataset
from damoserve_compress.network import Network
from damoserve_compress.network.checkpoint import Description, load_checkpoint
from damoserve_profiles.imaging import Size
from damoserve_profiles.manifest import InputSpec
from damoserve_profiles.repository import describe_file


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A checkpoint that was read: its file, the file's SHA-256, and the network in it.

    The steps of a build share the network: they compute with it, and change copies.
    """

    path: Path
    sha256: str
    network: Network
    """The network in training form and eval mode."""
    description: Description

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def input(self) -> InputSpec:
        return self.description.input

    @property
    def size(self) -> Size:
        return self.input.size


@dataclass(frozen=True, eq=False)
class NetworkFiles:
    """The checkpoints of one build: each file is loaded and hashed once, however many recipes start from it."""

    _read: dict[Path, TrainedNetwork] = field(default_factory=dict, init=False)

    def read(self, path: Path, sha256: str | None = None) -> TrainedNetwork:
        """Gives the network in a file, whose hash is taken as told where it is known already.

        A file that is known to have changed is read again. Raises CheckpointError.
        """
        known = self._read.get(path)
        if known is None or sha256 not in (None, known.sha256):
            known = self._read[path] = TrainedNetwork(
                path, sha256 or describe_file(path).sha256, *load_checkpoint(path)
            )
        return known


def read_network(path: Path, *datasets: Dataset) -> TrainedNetwork:
    """Reads a checkpoint for data sets. Raises CheckpointError, or BuildError as `check_labels`."""
    network = NetworkFiles().read(path)
    check_labels(network, *datasets)
    return network


def check_labels(network: TrainedNetwork, *datasets: Dataset) -> None:
    """Raises BuildError where a data set has other labels than the network."""
    labels = network.description.labels
    for dataset in datasets:
        if dataset.labels != labels:
            raise BuildError(f"the data have labels {dataset.labels}, the checkpoint {labels}")
