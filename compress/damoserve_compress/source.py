"""The trained network that profiles are built from."""

from dataclasses import dataclass
from pathlib import Path

from damoserve_compress.datasets import Dataset
from damoserve_compress.network import Network
from damoserve_compress.network.checkpoint import Description, load_checkpoint
from damoserve_profiles.imaging import Size
from damoserve_profiles.manifest import InputSpec
from damoserve_profiles.repository import describe_file


class BuildError(RuntimeError):
    """A profile cannot be built as its recipe says."""


@dataclass(frozen=True, eq=False)
class SourceNetwork:
    """A checkpoint that suits the data."""

    name: str
    sha256: str
    network: Network
    """In training form and eval mode."""
    description: Description

    @property
    def input(self) -> InputSpec:
        return self.description.input

    @property
    def size(self) -> Size:
        return self.input.size


def read_source(checkpoint: Path, *datasets: Dataset) -> SourceNetwork:
    """Raises CheckpointError, or BuildError where the data have other labels."""
    network, description = load_checkpoint(checkpoint)
    for dataset in datasets:
        if dataset.labels != description.labels:
            raise BuildError(f"the data have labels {dataset.labels}, the checkpoint {description.labels}")
    return SourceNetwork(checkpoint.name, describe_file(checkpoint).sha256, network, description)
