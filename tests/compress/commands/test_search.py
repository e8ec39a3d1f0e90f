"""The `search` command from budgets to a structure file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from damoserve_compress.cli import app
from damoserve_compress.network.structures import find_structure, write_structure
from damoserve_compress.search.operators import ConvolutionKind
from damoserve_compress.search.table import LatencyTable, Slab, slabs_for, this_machine
from tests.support.compress.families import RES


@pytest.fixture
def start(tmp_path: Path) -> Path:
    write_structure(tmp_path / "start.yaml", RES)
    return tmp_path / "start.yaml"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Plans all kinds of convolutions that the family has, one of each."""
    table = LatencyTable(machine=this_machine())
    kinds: list[ConvolutionKind] = [slab.kind for slab in slabs_for(RES)]
    for kernel, stride, form in kinds:
        taken = 3 if form == "image" else 16
        fields = {"kernel": kernel, "stride": stride, "form": form, "inputs": [taken], "outputs": [16], "sides": [8]}
        table.plan([Slab.model_validate(fields)])
    table.save(tmp_path / "table.json")
    return tmp_path / "table.json"


def command(start: Path, *arguments: str) -> list[str]:
    out = start.with_name("found.yaml")
    fixed = ["--size", "64", "--classes", "2", "--multiple", "8", "--population", "10"]
    return ["search", "--reference", str(start), "--out", str(out), *fixed, *arguments]


def test_search_measures_and_leaves_a_structure_with_its_record(start: Path, table: Path) -> None:
    arguments = command(start, "--table", str(table), "--evaluations", "400", "--latency-ms", "1000")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "measured ms" in result.output
    found = find_structure(str(start.with_name("found.yaml")))
    assert (found.name, found.input_size) == ("found", 64)
    record = json.loads(start.with_name("found.search.json").read_text())
    assert record["found"]["score"] > record["reference"]["score"]
    assert record["found"]["measured_ms"] > 0
    assert record["found"]["costs"]["macs"] <= record["search"]["budget"]["macs"]
    assert (record["evaluations"], record["search"]["seed"]) == (400, 0)
    assert record["machine"] == this_machine().model_dump()


def test_a_stopped_search_goes_on(start: Path) -> None:
    first, second = (command(start, "--no-latency", "--evaluations", count) for count in ("200", "500"))
    for arguments in (first, second):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert "ms" not in result.output.split("steps")[0].split("depth")[1]
    parts = start.with_name("found.yaml").read_bytes()
    start.with_name("found.state.json").unlink()
    assert CliRunner().invoke(app, second).exit_code == 0
    assert start.with_name("found.yaml").read_bytes() == parts


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--macs", "1000"], 1, "tiny is over budget: macs 2241856 above 1000; start from a smaller reference"),
        (["--reference", "Q"], 1, "unknown variant 'Q'"),
        (["--multiple", "5"], 1, "multiples of an even number, not of 5"),
        (["--out", "P.yaml"], 2, "must end in .yaml and not be a variant's name"),
        (["--out", "found.txt"], 2, "must end in .yaml and not be a variant's name"),
        (["--size", "65"], 2, "65 is no multiple of 32"),
        (["--latency-ms", "3"], 2, "cannot be limited with --no-latency"),
    ],
)
def test_wishes_that_cannot_be_met_are_told(start: Path, arguments: list[str], code: int, message: str) -> None:
    result = CliRunner().invoke(app, command(start, "--no-latency", *arguments), env={"COLUMNS": "300"})
    assert result.exit_code == code
    assert message in result.output
    assert not start.with_name("found.yaml").exists()


def test_a_reference_over_budget_is_told_before_anything_is_measured(start: Path) -> None:
    result = CliRunner().invoke(app, command(start, "--macs", "1000"))
    assert result.exit_code == 1
    assert "tiny is over budget: macs 2241856 above 1000" in result.output
    assert not start.with_name("latency.json").exists()


def test_tables_of_other_machines_are_refused(start: Path, table: Path) -> None:
    table.write_text(table.read_text().replace(this_machine().cpu, "Another"))
    result = CliRunner().invoke(app, command(start, "--table", str(table)))
    assert result.exit_code == 1
    assert "was measured on Another" in result.output
