"""Convolutions return to float one by one, by what they harm, until the budget is kept."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from damoserve_compress.quantise import QuantisationError, QuantisationReport, quantise_onnx
from damoserve_compress.quantise.graph import ConvolutionGroup, Graph
from damoserve_compress.quantise.mixed import Decision, keep_accuracy
from damoserve_profiles.recipe import Quantise
from tests.support.compress.small_graph import NAMES, in_eight_bits, save_small, small_images

IMAGES = small_images(4)


def groups(names: str) -> list[ConvolutionGroup]:
    return [ConvolutionGroup(name, (name,), (name,)) for name in names]


class Measured:
    """Average precision by a table of what each group in float wins."""

    def __init__(self, **gains: float) -> None:
        self.gains = gains
        self.calls: list[str] = []

    def __call__(self, floating: Sequence[ConvolutionGroup]) -> float:
        self.calls.append("".join(group.name for group in floating))
        return 0.5 + sum(self.gains[group.name] for group in floating)


def test_nothing_is_ranked_where_the_budget_is_kept_at_once() -> None:
    measure = Measured()

    def never() -> list[ConvolutionGroup]:
        raise AssertionError

    found = keep_accuracy(never, measure, 0.5, 3)
    assert (found.floating, found.ap, found.decisions) == ((), 0.5, ())
    assert measure.calls == [""]


def test_groups_return_in_their_order_until_the_budget_is_kept() -> None:
    measure = Measured(a=0.02, b=0.02, c=0.02)
    found = keep_accuracy(lambda: groups("abc"), measure, 0.539, 3)
    assert [group.name for group in found.floating] == ["a", "b"]
    assert found.ap == pytest.approx(0.54)
    assert measure.calls == ["", "a", "ab"]


@pytest.mark.parametrize("useless", [0.0, -0.1])
def test_a_step_that_does_not_help_is_taken_back(useless: float) -> None:
    measure = Measured(a=useless, b=0.02, c=0.02)
    found = keep_accuracy(lambda: groups("abc"), measure, 0.539, 3)
    assert measure.calls == ["", "a", "b", "bc"]
    assert [group.name for group in found.floating] == ["b", "c"]
    assert found.decisions[0] == Decision("a", 0.5, 0.5 + useless, kept=False)
    assert [decision.kept for decision in found.decisions] == [False, True, True]


@pytest.mark.parametrize(("limit", "expected"), [(0, ""), (1, "a"), (2, "ab")])
def test_no_more_than_the_limit_stay_in_float(limit: int, expected: str) -> None:
    measure = Measured(a=0.01, b=0.01, c=0.01)
    found = keep_accuracy(lambda: groups("abc"), measure, 0.6, limit)
    assert "".join(group.name for group in found.floating) == expected
    assert found.ap == pytest.approx(0.5 + 0.01 * limit)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("mixed") / "float.onnx")


def quantised(source: Path, evaluate: Callable[[Path], float] | None = None, **options: object) -> QuantisationReport:
    target = source.with_name("int8.onnx")
    chosen = Quantise.model_validate({"calibration_images": 4, **options})
    return quantise_onnx(source, target, lambda: IMAGES, chosen, evaluate)


@pytest.fixture(scope="module")
def ranking(source: Path) -> list[str]:
    return [row.group for row in quantised(source, sensitivity=True).sensitivity]


def test_the_most_harmful_convolutions_are_found(source: Path, ranking: list[str]) -> None:
    report = quantised(source, sensitivity=True)
    assert sorted(ranking) == sorted(NAMES)
    noise = [row.sqnr_db for row in report.sensitivity]
    assert noise == sorted(noise)
    # The small channels between these, which count as much, are lost in a range that suits the large ones.
    assert set(ranking[:2]) == {"uneven", "silu"}
    assert noise[1] < noise[2] - 3


def test_equalisation_takes_the_harm_away(source: Path) -> None:
    before, after = (
        {row.group: row.sqnr_db for row in quantised(source, sensitivity=True, equalise=equalise).sensitivity}
        for equalise in (False, True)
    )
    assert all(after[name] > before[name] + 10 for name in ("uneven", "silu"))


def harm(path: Path, of: dict[str, float]) -> float:
    return 0.6 - sum(of.get(name, 0.0) for name in in_eight_bits(path))


def test_the_written_graph_is_what_was_decided(source: Path, ranking: list[str]) -> None:
    useless, harmful = ranking[:2]
    table = {useless: -0.01, harmful: 0.05}
    report = quantised(source, lambda path: harm(path, table), budget=0.005)
    assert report.float_ap == 0.6
    assert [(decision.group, decision.kept) for decision in report.decisions] == [(useless, False), (harmful, True)]
    assert report.decisions[1].ap_before == pytest.approx(0.56)
    assert report.ap == pytest.approx(0.61)
    assert report.float_groups == (harmful,)
    assert in_eight_bits(source.with_name("int8.onnx")) == set(NAMES) - {harmful}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("operators", ["all", "conv", "conv+concat"])
def test_any_convolution_can_stay_in_float(source: Path, name: str, operators: str) -> None:
    """The graph is refused unless all others run in 8 bits."""
    report = quantised(
        source, lambda path: harm(path, {name: 0.05}), budget=0.0, max_float_groups=1, operators=operators
    )
    assert report.float_groups == (name,)
    assert in_eight_bits(source.with_name("int8.onnx")) == set(NAMES) - {name}


def test_bias_correction_stays_out_of_convolutions_in_float(source: Path) -> None:
    report = quantised(source, lambda path: harm(path, {"silu": 0.05}), budget=0.0, bias_correction=True)
    assert report.float_groups == ("silu",)
    assert "silu" in report.bias_shifts
    written, before = onnx.load(source.with_name("int8.onnx")), Graph(onnx.load(source))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
    bias, scale = (stored[f"silu_out_node.float_bias_{part}"] for part in ("quantized", "scale"))
    assert (bias * scale).astype(np.float32) == pytest.approx(before.weights("silu.bias"), rel=1e-6, abs=1e-9)


def test_a_budget_that_cannot_be_kept_writes_nothing(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "int8.onnx"
    options = Quantise(calibration_images=4, budget=0.01, max_float_groups=2)
    with pytest.raises(QuantisationError, match=r"2 of 5 convolutions in float; the budget is 0\.01"):
        quantise_onnx(source, target, lambda: IMAGES, options, lambda path: harm(path, dict.fromkeys(NAMES, 0.1)))
    assert not target.exists()


def test_a_budget_without_selection_images_is_refused(source: Path, tmp_path: Path) -> None:
    for options in (
        Quantise(calibration_images=4, budget=0.01),
        Quantise(calibration_images=4, sensitivity_ap=1),
    ):
        with pytest.raises(QuantisationError, match="selection images"):
            quantise_onnx(source, tmp_path / "int8.onnx", lambda: IMAGES, options)


def test_average_precision_is_measured_of_the_most_harmful(source: Path, ranking: list[str]) -> None:
    report = quantised(source, lambda path: harm(path, {ranking[0]: 0.25}), sensitivity_ap=2)
    assert [row.ap for row in report.sensitivity] == [0.35, 0.6, None, None, None]


def test_the_report_is_plain_values(source: Path) -> None:
    report = quantised(source, lambda path: harm(path, {"silu": 0.05}), budget=0.0, bias_correction=True)
    read = json.loads(json.dumps(asdict(report), allow_nan=False))
    assert read["calibration"]["images"] == 4
    assert len(read["calibration"]["sha256"]) == 64
    assert {row["tensor"] for row in read["tensors"]} >= {"a", "b", "c", "both"}
    assert all(row["low"] <= 0 <= row["high"] for row in read["tensors"])
