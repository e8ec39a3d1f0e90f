"""The `train` command from a folder of data to a checkpoint."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from damoserve_compress.cli import app
from damoserve_compress.datasets.coco import write_coco
from damoserve_compress.datasets.rendered import RenderedSmears
from damoserve_compress.network.checkpoint import load_checkpoint

ARGUMENTS = ["train", "--model", "cells", "--size", "64", "--epochs", "1", "--batch-size", "2", "--threads", "1"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    annotations = write_coco(RenderedSmears(2, seed=1, size=(128, 96)), folder)
    for name in ("train.json", "val.json"):
        (folder / name).write_bytes(annotations.read_bytes())
    return folder


def test_train_leaves_a_checkpoint_to_start_from(tmp_path: Path, data: Path) -> None:
    runner, environment = CliRunner(), {"DAMOSERVE_DATA": str(data)}
    first = runner.invoke(app, [*ARGUMENTS, "--out", str(tmp_path / "a"), "--rendered", "2"], env=environment)
    assert first.exit_code == 0, first.output
    assert "epoch 1/1" in first.output
    model = tmp_path / "a" / "model.safetensors"
    _, description = load_checkpoint(model)
    assert (description.model, description.variant) == ("cells", "P")
    assert description.labels == ("RBC", "WBC", "Platelets")
    second = runner.invoke(app, [*ARGUMENTS, "--out", str(tmp_path / "b"), "--init", str(model)], env=environment)
    assert second.exit_code == 0, second.output


def test_faults_are_told_in_one_line(tmp_path: Path, data: Path) -> None:
    arguments = ["train", "--model", "cells", "--data", str(data), "--out", str(tmp_path / "out"), "--size", "65"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.output.splitlines() == ["Error: the size must be a positive multiple of 32, not 65"]
