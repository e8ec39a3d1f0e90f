"""The interface of a target to the build."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from damoserve_compress.export import Tolerance
from damoserve_compress.measure.evaluate import Detector
from damoserve_compress.measure.runtime import ONNX_RUNTIME, Runtime
from damoserve_compress.network import Network
from damoserve_compress.quantise import Images, QuantisationReport
from damoserve_compress.quantise.quantise import Evaluate
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import Export, Quantise


class TargetSteps(Protocol):
    """The steps of a build that differ between targets, in their order."""

    @property
    def tolerance(self) -> Tolerance:
        """The difference that the finished graph of a network that is not quantised may have from the network."""

    def adapt(self, network: Network, options: Export) -> Network:
        """The network that the graphs compute: the given one, unless the recipe asks for inexact replacements."""

    def export(self, network: Network, size: Size, options: Export, path: Path) -> None:
        """Writes the float32 graph of an adapted network. Raises TargetError where the target would not take it."""

    def quantise(
        self, source: Path, target: Path, images: Images, options: Quantise, evaluate: Evaluate | None = None
    ) -> QuantisationReport:
        """Writes the 8-bit form of an exported graph. Raises QuantisationError."""

    @property
    def finish(self) -> Callable[[Path, Path], None] | None:
        """Writes what is handed to the target's compiler, to the second path: of an exported graph or of its 8-bit
        form, at the first. Raises TargetError where the target would not take it. None: these are it already."""

    def detector(self, path: Path, options: Export, runtime: Runtime = ONNX_RUNTIME) -> Detector:
        """Opens a graph of any of these steps on the processor; `runtime` is a choice for the target cpu only."""
