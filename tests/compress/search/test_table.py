"""The latency table: measured, kept, refused, and what is predicted from it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from damoserve_compress.network import VARIANTS, Structure
from damoserve_compress.search import LatencyModel, LatencyTable, TableError
from damoserve_compress.search.measure import REFERENCE, latency_model, measure
from damoserve_compress.search.operators import Convolution, ConvolutionKind, convolutions
from damoserve_compress.search.table import PairedTiming, Slab, key, open_table, slabs_for, this_machine
from damoserve_profiles.imaging import Size
from tests.support.compress.families import FAMILIES, RES

SLABS = (
    Slab(kernel=1, stride=1, inputs=(16, 64), outputs=(16, 32), sides=(8, 32)),
    Slab(kernel=3, stride=2, form="depthwise", inputs=(16, 64), outputs=(1,), sides=(8,)),
    Slab(kernel=6, stride=2, form="image", inputs=(3,), outputs=(16,), sides=(16,)),
)


def invented(slabs: tuple[Slab, ...] = SLABS) -> LatencyTable:
    """Of a machine that does a million multiplications a millisecond, and was half as fast for the depthwise ones."""
    table = LatencyTable(machine=this_machine())
    table.plan(slabs)
    for point in table.missing():
        slow = 2 if point.kind.form == "depthwise" else 1
        table.timings[key(point)] = PairedTiming(ms=slow * point.macs / 1e6, reference_ms=slow * 0.3)
    return table


def test_measuring_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, told = tmp_path / "table.json", []
    table = open_table(path)
    table.plan(SLABS)

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if done:
            raise Stop

    with pytest.raises(Stop):
        measure(table, path, stop, rounds=2)
    assert told == [(0, 11), (8, 11)]
    halfway = open_table(path)
    assert len(halfway.missing()) == 3
    with pytest.raises(TableError, match="lacks 3 convolutions"):
        LatencyModel(halfway)
    measure(halfway, path, lambda done, total: told.append((done, total)), rounds=2)
    assert told[2:] == [(8, 11), (11, 11)]
    whole = open_table(path)
    assert whole == halfway
    assert table.timings.items() <= whole.timings.items()
    largest = whole.timings[key(Convolution(ConvolutionKind(1, 1), 64, 32, 32, 32))].ms
    assert largest > whole.timings[key(Convolution(ConvolutionKind(1, 1), 16, 16, 8, 8))].ms


def test_tables_survive_their_file_and_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table = invented()
    table.save(path)
    assert open_table(path) == table
    assert open_table(path).digest() == table.digest()
    for change in ({"cpu": "Another"}, {"runtime": "onnxruntime 1.0"}, {"instruction_set": "none"}):
        table.model_copy(update={"machine": this_machine().model_copy(update=change)}).save(path)
        with pytest.raises(TableError, match=r"measured on .*, this is .*: name another file with --table"):
            open_table(path)


@pytest.mark.parametrize("text", ["", "{}", '{"machine": 3}', "[1]"])
def test_damaged_tables_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(TableError, match=r"table.json is no latency table: "):
        open_table(path)
    with pytest.raises(TableError, match="cannot be read"):
        open_table(tmp_path)


def test_predictions_meet_the_table_and_widths_cost_whole_blocks() -> None:
    model = LatencyModel(invented())
    for slab in SLABS:
        for point in slab.points():
            assert model.convolution(point) == pytest.approx(point.macs / 1e6)
    between = Convolution(ConvolutionKind(1, 1), 32, 32, 16, 24)
    assert model.convolution(between) == pytest.approx(between.macs / 1e6)
    assert model.convolution(between._replace(in_channels=17)) == model.convolution(between)
    assert model.convolution(between._replace(out_channels=33)) == pytest.approx(1.5 * between.macs / 1e6)


def test_rates_are_interpolated_in_logarithms_and_kept_beyond_the_ends() -> None:
    table = invented()
    for point in SLABS[0].points():
        efficiency = 4.0 if point.in_channels == 64 else 1.0
        table.timings[key(point)] = PairedTiming(ms=point.macs / 1e6 / efficiency, reference_ms=0.3)
    model = LatencyModel(table)
    middle, beyond = (Convolution(ConvolutionKind(1, 1), width, 16, 8, 8) for width in (32, 256))
    assert model.convolution(middle) == pytest.approx(middle.macs / 1e6 / 2)
    assert model.convolution(beyond) == pytest.approx(beyond.macs / 1e6 / 4)
    with pytest.raises(TableError, match="holds no convolution dense 3x3/1"):
        model.convolution(REFERENCE)


def test_a_model_is_calibrated_with_a_whole_network() -> None:
    size = Size(64, 64)
    model = LatencyModel(invented(slabs_for(RES)))
    alone = model.network(RES, size, 2)
    usual = 0.3
    model.calibrate(RES, size, 2, PairedTiming(ms=3 * alone, reference_ms=2 * usual))
    assert model.network(RES, size, 2) == pytest.approx(1.5 * alone)
    assert model.network(VARIANTS["P"], size, 2) > model.network(RES, size, 2)


@pytest.mark.parametrize("structure", [*FAMILIES, *VARIANTS.values()], ids=lambda structure: structure.name)
def test_what_is_planned_suffices_for_the_family(structure: Structure) -> None:
    kinds = {slab.kind for slab in slabs_for(structure)}
    assert {point.kind for point in convolutions(structure, Size(64, 64), 2)} <= kinds


def test_a_model_of_a_machine_reuses_what_is_measured(tmp_path: Path) -> None:
    path, size = tmp_path / "table.json", Size(64, 64)
    invented(slabs_for(RES)).save(path)
    first = latency_model(path, RES, size, 2, lambda done, total: None)
    assert math.isfinite(first.factor)
    before = path.read_bytes()
    second = latency_model(path, RES, size, 2, lambda done, total: None)
    assert (second.factor, path.read_bytes()) == (first.factor, before)
