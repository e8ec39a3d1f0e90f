"""Fills a latency table on the machine at hand.

A graph holds several convolutions of a kind over one input, each with its own weights, each added to the one before: so
ONNX Runtime fuses them in a network too. What a run costs besides, the call and the change of layout at both ends, is
spread over all of them.

The clock is the processor time of the thread that runs the graph: the sessions have no other thread, so on an idle
machine it is the latency. On a busy one, the time on the wall counts the turns of other programs too, and those fall on
long runs but seldom on short ones.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from damoserve_compress.export import export_onnx
from damoserve_compress.measure.runtime import open_session
from damoserve_compress.measure.timing import interleave
from damoserve_compress.network import build_network
from damoserve_compress.network.structures import Structure
from damoserve_compress.search.operators import Convolution, ConvolutionKind
from damoserve_compress.search.predict import LatencyModel
from damoserve_compress.search.table import THREADS, LatencyTable, PairedTiming, key, network_key, open_table, slabs_for
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import Export

REFERENCE: Final = Convolution(ConvolutionKind(3, 1), 64, 64, 26, 26)
GROUP: Final = 8
ROUNDS: Final = 15
NETWORK_ROUNDS: Final = 60
WARM_UP: Final = 3
_OPSET: Final = Export().opset
_ENOUGH_MACS: Final = 20_000_000
"""A graph of this many runs long enough for the clock."""

Progress = Callable[[int, int], None]


def measure(table: LatencyTable, path: Path, progress: Progress, rounds: int = ROUNDS) -> None:
    """Measures what is planned and missing, and saves the table at `path` after each group of convolutions.

    Every group is timed interleaved with the reference convolution. `progress` is told how many are done and planned.
    """
    missing = table.missing()
    total = sum(1 for slab in table.slabs for _ in slab.points())
    progress(total - len(missing), total)
    for first in range(0, len(missing), GROUP):
        group = missing[first : first + GROUP]
        with TemporaryDirectory() as folder:
            runs, counts = zip(*(_runner(point, Path(folder)) for point in (REFERENCE, *group)), strict=True)
            medians = _medians(runs, rounds) / counts
        for point, milliseconds in zip(group, medians[1:], strict=True):
            table.timings[key(point)] = PairedTiming(ms=float(milliseconds), reference_ms=float(medians[0]))
        table.save(path)
        progress(total - len(missing) + first + len(group), total)


def latency_model(path: Path, reference: Structure, size: Size, num_classes: int, progress: Progress) -> LatencyModel:
    """Prepares a model of the latencies of structures like the reference, with which it is calibrated.

    Measures what the table at `path` lacks for that. Raises TableError as `open_table`.
    """
    table = open_table(path)
    table.plan(slabs_for(reference))
    measure(table, path, progress)
    name = network_key(reference, size, num_classes)
    if name not in table.networks:
        [table.networks[name]] = measure_networks([reference], size, num_classes)
        table.save(path)
    model = LatencyModel(table)
    model.calibrate(reference, size, num_classes, table.networks[name])
    return model


def measure_networks(structures: Sequence[Structure], size: Size, num_classes: int) -> list[PairedTiming]:
    """Times whole networks, exported as fp32 profiles are, interleaved with each other and the reference convolution.

    The weights are random: no kernel is slower for other ones.
    """
    image = np.random.default_rng(0).integers(0, 256, (1, size.height, size.width, 3), dtype=np.uint8)
    with TemporaryDirectory() as name:
        folder = Path(name)
        reference, count = _runner(REFERENCE, folder)
        runs = [reference]
        for index, structure in enumerate(structures):
            path = folder / f"{index}.onnx"
            export_onnx(build_network(structure, num_classes).eval(), size, Export(), path)
            runs.append(partial(open_session(path, THREADS).run, None, {"images": image}))
        medians = _medians(runs, NETWORK_ROUNDS)
    return [PairedTiming(ms=float(ms), reference_ms=float(medians[0] / count)) for ms in medians[1:]]


def _medians(runs: Sequence[Callable[[], object]], rounds: int) -> NDArray[np.float64]:
    """Median milliseconds `[len(runs)]` of interleaved runs."""
    medians: NDArray[np.float64] = np.median(interleave(runs, rounds, WARM_UP, time.thread_time), axis=0)
    return medians


def _runner(point: Convolution, folder: Path) -> tuple[Callable[[], object], int]:
    """Prepares the run of a graph of convolutions like `point`; gives it, and how many convolutions these are."""
    count = int(np.clip(_ENOUGH_MACS // point.macs, 4, 64))
    model, shape = _graph(point, count)
    path = folder / f"{hashlib.sha256(key(point).encode()).hexdigest()}.onnx"
    onnx.save(model, path)
    image = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return partial(open_session(path, THREADS).run, None, {"x": image}), count


def _graph(point: Convolution, count: int) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    kernel, stride, form = point.kind
    groups = point.in_channels if form == "depthwise" else 1
    # Windows of even size are centred between pixels: those of the stem reach 2 beyond the edge at both ends.
    pad = (kernel - 1) // 2
    shape = 1, point.in_channels, point.height * stride, point.width * stride
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for index in range(count):
        weight = rng.standard_normal((point.out_channels, point.in_channels // groups, kernel, kernel), np.float32)
        bias = rng.standard_normal(point.out_channels, np.float32)
        weights += [numpy_helper.from_array(weight, f"w{index}"), numpy_helper.from_array(bias, f"b{index}")]
        inputs, edges = ["x", f"w{index}", f"b{index}"], [pad] * 4
        nodes.append(helper.make_node("Conv", inputs, [f"c{index}"], group=groups, pads=edges, strides=[stride] * 2))
        if index:
            nodes.append(helper.make_node("Add", [f"c{index}", f"r{index - 1}"], [f"s{index}"]))
        nodes.append(helper.make_node("Relu", [f"s{index}" if index else f"c{index}"], [f"r{index}"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info(f"r{count - 1}", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "convolutions", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10), shape
