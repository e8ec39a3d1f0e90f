"""Distributions lose nothing, and ranges are what their definitions say, computed the slow way."""

import math
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from damoserve_compress.export import export_onnx
from damoserve_compress.network import Network
from damoserve_compress.quantise import QuantisationError
from damoserve_compress.quantise.graph import Graph
from damoserve_compress.quantise.histogram import BINS, Histogram
from damoserve_compress.quantise.observe import collect
from damoserve_compress.quantise.ranges import (
    GRID,
    STEPS,
    choose_range,
    entropy_range,
    expected_error,
    minmax_range,
    mse_range,
    percentile_range,
)
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import Export

Array = NDArray[np.float32]
VALUES = hnp.arrays(
    np.float32,
    st.integers(1, 40),
    elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
    | st.floats(-1, 1, width=32, allow_subnormal=False)
    | st.just(0.0),
)


def histogram_of(*parts: Array) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


def samples(shape: str, count: int = 20_000) -> Array:
    rng = np.random.default_rng(3)
    draw: dict[str, Callable[[], Any]] = {
        "normal": lambda: rng.normal(0.5, 2, count),
        "relu": lambda: np.maximum(rng.normal(0, 1, count), 0),
        "heavy": lambda: rng.standard_t(2, count),
        "outlier": lambda: np.append(rng.uniform(0, 1, count), 50),
    }
    return np.asarray(draw[shape](), np.float32)


SHAPES = ("normal", "relu", "heavy", "outlier")


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_a_histogram_counts_every_value_in_its_bin(parts: list[Array]) -> None:
    histogram = histogram_of(*parts)
    values = np.concatenate(parts).astype(np.float64)
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    assert math.frexp(histogram.width)[0] == 0.5
    bins = np.floor(values[values != 0] / histogram.width).astype(int) + BINS
    assert np.array_equal(histogram.counts, np.bincount(bins, minlength=2 * BINS))
    assert histogram.zeros == np.count_nonzero(values == 0)
    assert histogram.total == len(values)


@given(st.lists(VALUES, min_size=2, max_size=4))
def test_the_order_of_the_images_does_not_matter(parts: list[Array]) -> None:
    one, other = histogram_of(*parts), histogram_of(*parts[::-1])
    assert np.array_equal(one.counts, other.counts)
    assert (one.width, one.zeros, one.low, one.high) == (other.width, other.zeros, other.low, other.high)


@pytest.mark.parametrize("first", [True, False])
def test_an_outlier_is_kept_wherever_it_comes(first: bool) -> None:
    usual, outlier = np.linspace(-1, 1, 1000, dtype=np.float32), np.array([1000.0], np.float32)
    histogram = histogram_of(*((outlier, usual, usual) if first else (usual, usual, outlier)))
    assert minmax_range(histogram) == (-1, 1000)
    assert histogram.total == 2001


def test_values_that_are_not_finite_are_refused() -> None:
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="finite"):
            histogram_of(np.array([1, value], np.float32))


def slow_error(histogram: Histogram, low: float, high: float) -> float:
    total = 0.0
    for centre, count in zip(histogram.centres, histogram.counts, strict=True):
        inside = low <= centre <= high
        total += count * (((high - low) / STEPS) ** 2 / 12 if inside else (centre - np.clip(centre, low, high)) ** 2)
    return total / histogram.total


@settings(deadline=None, max_examples=20)
@given(VALUES, st.floats(0, 1), st.floats(0, 1))
def test_the_expected_error_is_that_of_every_bin(values: Array, below: float, above: float) -> None:
    histogram = histogram_of(values)
    low, high = minmax_range(histogram)
    expected = slow_error(histogram, low * below, high * above)
    scale = max(-low, high) ** 2
    assert float(expected_error(histogram, low * below, high * above)) == pytest.approx(
        expected, rel=1e-6, abs=scale * 1e-9
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_the_expected_error_is_what_quantising_the_values_costs(shape: str, share: float) -> None:
    values = samples(shape)
    histogram = histogram_of(values)
    low, high = (bound * share for bound in minmax_range(histogram))
    step = (high - low) / STEPS
    zero = round(-low / step)
    rounded = (np.clip(np.rint(values / step) + zero, 0, STEPS) - zero) * step
    actual = np.mean((values.astype(np.float64) - rounded) ** 2)
    assert float(expected_error(histogram, low, high)) == pytest.approx(actual, rel=0.05)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mse_range_is_the_best_of_its_grid(shape: str) -> None:
    histogram = histogram_of(samples(shape, 500))
    low, high = minmax_range(histogram)
    shares = [1.0] if low == 0 else np.arange(GRID, 0, -8) / GRID
    best = min(
        slow_error(histogram, low * below, high * above) for below in shares for above in np.arange(GRID, 0, -8) / GRID
    )
    assert slow_error(histogram, *mse_range(histogram)) <= best * (1 + 1e-9)


@settings(deadline=None)
@given(VALUES, st.floats(51, 100))
def test_the_percentile_range_cuts_no_more_than_allowed_and_nearly_as_much(values: Array, percentile: float) -> None:
    histogram = histogram_of(values)
    low, high = percentile_range(histogram, percentile)
    allowed = len(values) * (1 - percentile / 100) / 2
    exact = np.sort(values.astype(np.float64))
    assert np.count_nonzero(exact < low) <= allowed + 1e-9
    assert np.count_nonzero(exact > high) <= allowed + 1e-9
    # One value more at either end would be too many: the bound is at most a bin away from it.
    cut = math.floor(allowed + 1e-9)
    assert low >= min(exact[cut], 0) - histogram.width
    assert high <= max(exact[len(exact) - 1 - cut], 0) + histogram.width


def slow_divergence(counts: list[int], start: int, stop: int) -> float:
    reference = [float(count) for count in counts[start:stop]]
    reference[0] += sum(counts[:start])
    reference[-1] += sum(counts[stop:])
    spread = [0.0] * len(reference)
    for step in range(STEPS + 1):
        members = [i for i in range(len(reference)) if i * (STEPS + 1) // len(reference) == step]
        filled = [i for i in members if counts[start + i]]
        for i in filled:
            spread[i] = sum(counts[start + j] for j in members) / len(filled)
    if not sum(spread):
        return math.inf
    return sum(
        p / sum(reference) * math.log((p / sum(reference)) / max(q / sum(spread), 1e-9))
        for p, q in zip(reference, spread, strict=True)
        if p
    )


def test_the_entropy_range_loses_the_least_information() -> None:
    histogram = histogram_of(np.minimum(samples("heavy", 400), 12))
    counts = histogram.counts.tolist()
    low, high = minmax_range(histogram)
    first, last = math.floor(low / histogram.width), math.floor(high / histogram.width)
    widest = max(-first, last + 1)
    sizes = np.linspace(widest, 2 * (STEPS + 1), GRID, dtype=int)[::9]
    found = {}
    for size in (int(size) for size in sizes):
        start, stop = max(first, -size), min(last + 1, size)
        found[size] = slow_divergence(counts, start + BINS, stop + BINS)
    chosen = entropy_range(histogram)
    start = first if chosen[0] == low else round(chosen[0] / histogram.width)
    stop = last + 1 if chosen[1] == high else round(chosen[1] / histogram.width)
    mine = slow_divergence(counts, start + BINS, stop + BINS)
    assert mine <= min(found.values()) + 1e-6


def test_clipping_methods_cut_an_outlier_and_auto_takes_the_least_error() -> None:
    histogram = histogram_of(samples("outlier"))
    found = {method: choose_range(histogram, method, 99.99) for method in ("minmax", "percentile", "mse", "entropy")}
    assert found["minmax"].high == 50
    assert found["entropy"].high < 10
    best = choose_range(histogram, "auto", 99.99)
    assert best.error == min(range_.error for range_ in found.values())
    assert best == found[best.method]


def test_of_equal_ranges_the_simplest_method_is_named() -> None:
    histogram = histogram_of(np.linspace(0, 1, 3000, dtype=np.float32))
    assert choose_range(histogram, "auto", 100).method == "minmax"


@pytest.mark.parametrize("values", [[0.0], [3.0], [-3.0], [0.0, 0.0, 7.0]])
@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy", "auto"])
def test_hardly_any_values_give_a_range_all_the_same(method: Any, values: list[float]) -> None:
    histogram = histogram_of(np.array(values, np.float32))
    found = choose_range(histogram, method, 99.99)
    assert minmax_range(histogram)[0] <= found.low <= 0 <= found.high <= minmax_range(histogram)[1]


@pytest.fixture(scope="module")
def graph(tiny_network: Network, size: Size, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    path = tmp_path_factory.mktemp("ranges") / "float.onnx"
    export_onnx(tiny_network, size, Export(candidates=40, stem="space_to_depth"), path)
    return Graph(onnx.load(path))


def noise(count: int, size: Size) -> Iterator[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield rng.integers(0, 256, (size.height, size.width, 3), dtype=np.uint8)


def test_memory_does_not_grow_with_the_images(graph: Graph, size: Size) -> None:
    peaks = []
    for count in (10, 200):
        tracemalloc.start()
        collect(graph, lambda count=count: noise(count, size), count)  # type: ignore[misc]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] == pytest.approx(peaks[0], rel=0.1)


def test_a_bright_first_image_is_in_the_range(graph: Graph, size: Size) -> None:
    images = [np.full((size.height, size.width, 3), 255, np.uint8), *noise(3, size)]
    bright, _ = collect(graph, lambda: images[:1], 1)
    together, calibration = collect(graph, lambda: images, 4)
    assert calibration.images == 4
    for name, histogram in bright.items():
        low, high = minmax_range(together[name])
        assert low <= histogram.low
        assert high >= histogram.high


def test_the_images_are_told_apart_by_their_digest(graph: Graph, size: Size) -> None:
    images = list(noise(3, size))
    digests = {collect(graph, lambda use=use: use, 3)[1].sha256 for use in (images, images[::-1], images[:2])}  # type: ignore[misc]
    assert len(digests) == 3
    assert collect(graph, lambda: images, 2)[1] == collect(graph, lambda: images[:2], 3)[1]


def test_no_images_are_refused(graph: Graph) -> None:
    with pytest.raises(QuantisationError, match="no calibration images"):
        collect(graph, lambda: [], 3)


def test_weights_that_give_no_numbers_are_refused_by_name(graph: Graph, size: Size, tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    [weights] = [tensor for tensor in model.graph.initializer if tensor.name == graph.convolutions[3].input[1]]
    weights.CopyFrom(
        onnx.numpy_helper.from_array(np.full_like(onnx.numpy_helper.to_array(weights), np.nan), weights.name)
    )
    with pytest.raises(QuantisationError, match=r"\S+ is not finite for calibration image 1"):
        collect(Graph(model), lambda: noise(1, size), 1)
