"""The steps of a quantisation, in their order."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from damoserve_compress.measure.runtime import Runtime
from damoserve_compress.measure.timing import instruction_set, time_models
from damoserve_compress.quantise.bias import output_shifts
from damoserve_compress.quantise.equalise import equalise
from damoserve_compress.quantise.errors import QuantisationError
from damoserve_compress.quantise.graph import ConvolutionGroup, Graph
from damoserve_compress.quantise.histogram import Histogram
from damoserve_compress.quantise.mixed import MixedPrecision, keep_accuracy
from damoserve_compress.quantise.observe import Images, collect
from damoserve_compress.quantise.ranges import Range, choose_range
from damoserve_compress.quantise.report import OperatorTime, QuantisationReport, TensorRange
from damoserve_compress.quantise.sensitivity import Sensitivity, sensitivities, write_alone
from damoserve_compress.quantise.write import OperatorSet, QuantisationPlan, write_quantised
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import Quantise

Evaluate = Callable[[Path], float]
"""Average precision (0..1) of a graph on the selection images."""

TIMED_ROUNDS = 40
ROUNDING = 1e-9
"""A drop may exceed the budget by so much: differences of averages are not exact."""
EXACT_SUMS = ("amx_int8", "avx512_vnni", "avx_vnni", "asimddp")
"""Instruction sets that add products of 8 bits without overflow."""


def quantise_onnx(
    source: Path, target: Path, images: Images, options: Quantise, evaluate: Evaluate | None = None
) -> QuantisationReport:
    """Writes the 8-bit form of `source`, which may be the same file as `target`.

    `images()` gives the calibration images, as the network gets them, uint8 `[H, W, 3]`; at most
    `options.calibration_images` are read at a time, and none kept but a few for the sensitivity. `evaluate` is called
    where the options hold a budget, and for `sensitivity_ap`. The same inputs give the same bytes, unless the op set is
    chosen by its time. Raises QuantisationError; nothing is written then.
    """
    if evaluate is None and (options.budget is not None or options.sensitivity_ap):
        raise QuantisationError("a budget and sensitivity_ap need selection images to measure the average precision on")
    with TemporaryDirectory() as folder:
        quantiser = _Quantiser(source, images, options, evaluate, Path(folder))
        report = quantiser.run()
        shutil.copyfile(quantiser.result, target)
    return report


class _Quantiser:
    def __init__(
        self, source: Path, images: Images, options: Quantise, evaluate: Evaluate | None, folder: Path
    ) -> None:
        self.source = source
        self.images = images
        self.options = options
        self.evaluate = evaluate
        self.folder = folder
        self.result = folder / "result.onnx"
        model = onnx.load(source)
        self.graph = Graph(equalise(model) if options.equalise else model)

    def run(self) -> QuantisationReport:
        histograms, calibration = collect(self.graph, self.images, self.options.calibration_images)
        ranges = self._ranges(histograms)
        bounds = {name: (found.low, found.high) for name, found in ranges.items()}
        self.plan = QuantisationPlan(bounds, self._reduce_range(), engine=self.options.engine)
        times = self._choose_operators()
        write_quantised(self.graph, self.plan, self.result)
        if self.options.bias_correction:
            images = islice(self.images(), self.options.calibration_images)
            shifts = output_shifts(self.graph, onnx.load(self.result), images)
            self.plan = replace(self.plan, shifts=shifts)
            write_quantised(self.graph, self.plan, self.result)
        float_ap, mixed = self._within_budget()
        measured = self.options.sensitivity or self.options.sensitivity_ap or mixed.decisions
        return QuantisationReport(
            calibration=calibration,
            instruction_set=instruction_set(),
            reduce_range=self.plan.reduce_range,
            operators=self.plan.operators,
            operator_times=times,
            tensors=tuple(
                TensorRange(name, found.low, found.high, found.method, found.error) for name, found in ranges.items()
            ),
            bias_shifts=self._shift_sizes(),
            sensitivity=tuple(self.rows) if measured else (),
            float_ap=float_ap,
            ap=None if float_ap is None else mixed.ap,
            decisions=mixed.decisions,
            float_groups=tuple(group.name for group in mixed.floating),
        )

    def _ranges(self, histograms: Mapping[str, Histogram]) -> dict[str, Range]:
        # Few anchors hold an object. Most values of the head are those of empty ones, and a range that suits these best
        # would clip just the scores that count.
        heads = {head.output[0] for head in self.graph.heads}
        return {
            name: choose_range(histogram, "minmax" if name in heads else self.options.ranges, self.options.percentile)
            for name, histogram in histograms.items()
        }

    def _reduce_range(self) -> bool:
        chosen = self.options.reduce_range
        return instruction_set() not in EXACT_SUMS if chosen is None else chosen

    def _choose_operators(self) -> tuple[OperatorTime, ...]:
        if self.options.operators != "measure":
            self.plan = replace(self.plan, operators=self.options.operators)
            return ()
        sets: Sequence[OperatorSet] = get_args(OperatorSet)
        paths = [self.folder / f"{operators}.onnx" for operators in sets]
        for operators, path in zip(sets, paths, strict=True):
            write_quantised(self.graph, replace(self.plan, operators=operators), path)
        runtime = Runtime(self.options.engine)
        times = time_models([(path, runtime) for path in paths], self._size(), TIMED_ROUNDS)
        rows = [
            OperatorTime(operators, round(float(np.median(column)), 3))
            for operators, column in zip(sets, times.T, strict=True)
        ]
        self.plan = replace(self.plan, operators=min(rows, key=lambda row: row.milliseconds).operators)
        return tuple(rows)

    def _size(self) -> Size:
        [images] = self.graph.model.graph.input
        _, height, width, _ = (dimension.dim_value for dimension in images.type.tensor_type.shape.dim)
        return Size(width, height)

    def _within_budget(self) -> tuple[float | None, MixedPrecision]:
        """The float graph's average precision, and what had to stay in float; the result is written accordingly."""
        if self.evaluate is None or self.options.budget is None:
            return None, MixedPrecision((), math.nan, ())
        float_ap = self.evaluate(self.source)
        lowest = float_ap - self.options.budget - ROUNDING
        mixed = keep_accuracy(self._ranking, self._measure, lowest, self.options.max_float_groups)
        if mixed.ap < lowest:
            raise QuantisationError(
                f"{float_ap - mixed.ap:.4f} AP is lost on the selection images with {len(mixed.floating)} of "
                f"{len(self.graph.groups)} convolutions in float; the budget is {self.options.budget}. Allow more of "
                "them with max_float_groups, a larger budget, other ranges, bias_correction or equalise"
            )
        write_quantised(self.graph, self.plan, self.result, mixed.floating)
        return float_ap, mixed

    def _measure(self, floating: tuple[ConvolutionGroup, ...]) -> float:
        path = self.folder / "candidate.onnx"
        write_quantised(self.graph, self.plan, path, floating)
        return self._evaluate(path)

    def _evaluate(self, path: Path) -> float:
        assert self.evaluate is not None
        return self.evaluate(path)

    def _ranking(self) -> list[ConvolutionGroup]:
        return [self._groups[row.group] for row in self.rows]

    @cached_property
    def _groups(self) -> dict[str, ConvolutionGroup]:
        return {group.name: group for group in self.graph.groups}

    @cached_property
    def rows(self) -> list[Sensitivity]:
        """The groups, the most harmful first."""
        path = self.folder / "alone.onnx"
        count = min(self.options.sensitivity_images, self.options.calibration_images)
        few: list[NDArray[np.uint8]] = list(islice(self.images(), count))
        rows = sensitivities(self.graph, self.plan, few, path)
        for index, row in enumerate(rows[: self.options.sensitivity_ap]):
            write_alone(self.graph, self.plan, self._groups[row.group], path)
            rows[index] = replace(row, ap=self._evaluate(path))
        return rows

    def _shift_sizes(self) -> dict[str, float]:
        return {
            group.name: float(np.sqrt(np.mean([np.square(self.plan.shifts[name]) for name in group.convolutions])))
            for group in self.graph.groups
            if all(name in self.plan.shifts for name in group.convolutions)
        }
