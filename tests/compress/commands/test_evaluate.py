"""The `evaluate` command, from checkpoints and profiles to a table, differences and a file."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from damoserve_compress.cli import app
from damoserve_compress.datasets.coco import write_coco
from damoserve_compress.datasets.rendered import RenderedSmears
from damoserve_compress.network import build_network
from damoserve_compress.network.checkpoint import Description, save_checkpoint
from damoserve_profiles.repository import BUNDLED

PROFILES = BUNDLED / "blood-cells" / "1"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("train", 1), ("val", 3)):
        write_coco(RenderedSmears(count, seed=1, size=(320, 240)), folder).rename(folder / f"{name}.json")
    return folder


def untrained(path: Path, labels: tuple[str, ...] = ("RBC", "WBC", "Platelets")) -> Path:
    torch.manual_seed(0)
    save_checkpoint(path, build_network("P", len(labels)), Description("cells", "P", labels, 64, 64))
    return path


def evaluate(data: Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["evaluate", "--data", str(data), *map(str, arguments)])


def test_models_of_every_kind_are_measured_against_the_first(data: Path, tmp_path: Path) -> None:
    checkpoint = untrained(tmp_path / "untrained.safetensors")
    report = tmp_path / "report.json"
    result = evaluate(data, PROFILES / "int8", PROFILES / "fp32" / "model.onnx", checkpoint, "--json", report)
    assert result.exit_code == 0, result.output
    int8, fp32, nothing = json.loads(report.read_text()).values()
    assert int8["difference"] is None
    assert int8["images"] == 3
    assert int8["ap"] > 0.4
    assert list(int8["per_class"]) == ["RBC", "WBC", "Platelets"]
    assert abs(fp32["difference"]["ap"]["value"]) < 0.1
    assert fp32["difference"]["ap"]["value"] == pytest.approx(fp32["ap"] - int8["ap"], abs=1e-9)
    assert nothing["difference"]["ap"]["upper"] < -0.3
    assert f"{100 * int8['ap']:.2f}" in result.output
    assert f"{100 * fp32['difference']['ap50']['lower']:+.2f} to" in result.output


def test_models_are_named_by_where_they_differ(data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        untrained(tmp_path / name / "model.safetensors")
    result = evaluate(data, *(tmp_path / name / "model.safetensors" for name in ("a", "b")), "--split", "train")
    assert result.exit_code == 0, result.output
    assert "b/model.safetensors: 1 images" in result.output
    assert "b/model.safetensors: AP +0.00 (+0.00 to +0.00)" in result.output
    assert "against a/model.safetensors" in result.output


@pytest.mark.parametrize("kind", ["labels", "folder", "file"])
def test_what_cannot_be_measured_ends_in_one_line(data: Path, tmp_path: Path, kind: str) -> None:
    if kind == "labels":
        path, reason = untrained(tmp_path / "m.safetensors", ("cat", "dog", "cow")), "has labels"
    elif kind == "folder":
        path, reason = tmp_path, "not a valid manifest"
    else:
        path, reason = tmp_path / "m.safetensors", "not a readable safetensors file"
        path.write_text("nothing")
    result = evaluate(data, path)
    assert result.exit_code == 1
    last = result.output.splitlines()[-1]
    assert last.startswith("Error: ")
    assert reason in last
