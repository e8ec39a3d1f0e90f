"""Amounts to cut: channel counts that bring a network down to a share of its operations, parameters or latency."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from damoserve_compress.export import export_onnx
from damoserve_compress.measure.complexity import complexity
from damoserve_compress.measure.timing import speed_up, time_models
from damoserve_compress.network import Network
from damoserve_compress.prune.cut import ChannelGroup, Keep, PruneError, kept_channels
from damoserve_compress.prune.sensitivity import StageSensitivity, ratios_at
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import Export, Prune

LARGEST_RATIO = 0.9
_BISECTIONS = 8  # to a 256th of the range; multiples of 8 or 16 channels are coarser than that
_ROUNDS = 20
_FREE = 1e-8  # of the loss


def remaining_share(options: Prune, whole: Network, size: Size) -> tuple[float, Callable[[Network], float]]:
    """The wanted share, and what tells the share that a smaller network has of the whole one."""
    if options.latency is not None:
        return options.latency, partial(_latency_share, _graph(whole, size), size)
    parameters, macs = complexity(whole, size)
    if options.macs is not None:
        return options.macs, lambda network: complexity(network, size)[1] / macs
    assert options.parameters is not None
    return options.parameters, lambda network: complexity(network, size)[0] / parameters


def _latency_share(whole: bytes, size: Size, network: Network) -> float:
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("whole.onnx", "smaller.onnx")]
        for path, graph in zip(paths, (whole, _graph(network, size)), strict=True):
            path.write_bytes(graph)
        return 1 / speed_up(time_models(paths, size, _ROUNDS), 1).median


def _graph(network: Network, size: Size) -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(copy.deepcopy(network).cpu(), size, Export(), path)
        return path.read_bytes()


def by_sensitivity(
    groups: Sequence[ChannelGroup], rows: Sequence[StageSensitivity], level: float, round_to: int
) -> Keep:
    """Cuts of every stage what costs it a share `level`, 0..1, of the greatest measured rise of the loss."""
    # Where no cut costs anything, the greatest is still to be reached.
    greatest = max(_FREE, *(max(row.rises) for row in rows))
    ratios = ratios_at(rows, level * greatest)
    return {group.root: kept_channels(group.channels, ratios[group.stage], round_to) for group in groups}


def bisect_cut(wanted: float, share: Callable[[Keep], float], cuts: Callable[[float], Keep]) -> tuple[Keep, float]:
    """The least of the cuts `cuts(0..1)` that leaves no more than `wanted`, and the share that it leaves.

    Raises PruneError where even the greatest leaves more.
    """
    known: dict[tuple[int, ...], float] = {}

    def left(level: float) -> float:
        keep = cuts(level)
        counts = tuple(keep.values())
        if counts not in known:
            known[counts] = share(keep)
        return known[counts]

    if left(1.0) > wanted:
        raise PruneError(f"the greatest cut leaves {left(1.0):.3f}, more than {wanted:.3f}: choose a larger share")
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) > wanted else (low, middle)
    return cuts(high), left(high)
