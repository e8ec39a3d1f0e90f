"""Sensitivity: how much each group of convolutions, alone in 8 bits, disturbs what the head puts out."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from damoserve_compress.quantise.graph import ConvolutionGroup, Graph
from damoserve_compress.quantise.observe import observe
from damoserve_compress.quantise.write import QuantisationPlan, write_quantised

HeadOutputs = dict[str, NDArray[np.float32]]
"""The values of the head's output tensors for one image."""


@dataclass(frozen=True)
class Sensitivity:
    """The harm of one group in 8 bits, all else in float."""

    group: str
    sqnr_db: float
    """Signal to quantisation noise of the head's outputs; the lower, the more harmful."""
    ap: float | None = None
    """Average precision (0..1) on the selection images, where it was measured."""


def sensitivities(
    graph: Graph, plan: QuantisationPlan, images: Sequence[NDArray[np.uint8]], path: Path
) -> list[Sensitivity]:
    """Ranks the groups, the most harmful first. `path` is overwritten with one graph after the other.

    One group in 8 bits, not one in float: the noise is then that group's alone, not a small part of everyone's.
    """
    exact = list(observe(graph.model, head_outputs(graph, graph.model), images))
    rows = []
    for group in graph.groups:
        write_alone(graph, plan, group, path)
        rows.append(Sensitivity(group.name, round(sqnr(graph, onnx.load(path), exact, images), 3)))
    return sorted(rows, key=lambda row: (row.sqnr_db, row.group))


def write_alone(graph: Graph, plan: QuantisationPlan, group: ConvolutionGroup, path: Path) -> None:
    """Writes the graph in which nothing but one group is in 8 bits."""
    # With all operators, sums and concatenations would add their noise.
    alone = replace(plan, operators="conv")
    write_quantised(graph, alone, path, [other for other in graph.groups if other != group])


def head_outputs(graph: Graph, model: ModelProto) -> list[str]:
    """The tensors of `model`, the graph or a quantised form of it, that what is behind the head reads."""
    nodes = {node.name: node for node in model.graph.node}
    names = []
    for output in (head.output[0] for head in graph.heads):
        readers = graph.consumers.get(output, [])
        names.append(nodes[readers[0].name].input[list(readers[0].input).index(output)] if readers else output)
    return names


def sqnr(graph: Graph, model: ModelProto, exact: Sequence[HeadOutputs], images: Iterable[NDArray[np.uint8]]) -> float:
    """Signal to quantisation noise in dB: the mean over the head's outputs of noise over signal power, at most 150.

    `model` is a quantised form of `graph`; `exact` are the float graph's own `head_outputs` for each of `images`.
    """
    names, reference = head_outputs(graph, model), head_outputs(graph, graph.model)
    noise, signal = np.zeros(len(names)), np.zeros(len(names))
    for seen, wanted in zip(observe(model, names, images), exact, strict=True):
        noise += [np.square(seen[a] - wanted[b], dtype=np.float64).sum() for a, b in zip(names, reference, strict=True)]
        signal += [np.square(wanted[name], dtype=np.float64).sum() for name in reference]
    ratio = float(np.mean(noise / np.maximum(signal, 1e-30)))
    return -10 * math.log10(max(ratio, 1e-15))
