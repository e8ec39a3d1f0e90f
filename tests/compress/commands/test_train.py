"""The `train` command from a folder of data to a checkpoint."""

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from damoserve_compress.cli import app
from damoserve_compress.datasets.coco import write_coco
from damoserve_compress.datasets.rendered import RenderedSmears
from damoserve_compress.network.checkpoint import load_checkpoint

ARGUMENTS = ["--model", "cells", "--size", "64", "--epochs", "1", "--set", "batch_size=2", "--set", "threads=1"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    annotations = write_coco(RenderedSmears(2, seed=1, size=(128, 96)), folder)
    for name in ("train.json", "val.json"):
        (folder / name).write_bytes(annotations.read_bytes())
    return folder


def test_train_leaves_a_checkpoint_to_start_from(tmp_path: Path, data: Path) -> None:
    runner, environment = CliRunner(), {"DAMOSERVE_DATA": str(data)}
    first = runner.invoke(
        app, ["train", *ARGUMENTS, "--out", str(tmp_path / "a"), "--set", "rendered=2"], env=environment
    )
    assert first.exit_code == 0, first.output
    assert "epoch 1/1" in first.output
    model = tmp_path / "a" / "model.safetensors"
    _, description = load_checkpoint(model)
    assert (description.model, description.variant) == ("cells", "P")
    assert description.labels == ("RBC", "WBC", "Platelets")
    second = runner.invoke(
        app, ["train", *ARGUMENTS, "--out", str(tmp_path / "b"), "--init", str(model)], env=environment
    )
    assert second.exit_code == 0, second.output


def test_distil_learns_from_such_a_checkpoint(tmp_path: Path, data: Path) -> None:
    runner, environment = CliRunner(), {"DAMOSERVE_DATA": str(data)}
    teacher = runner.invoke(app, ["train", *ARGUMENTS, "--out", str(tmp_path / "teacher")], env=environment)
    assert teacher.exit_code == 0, teacher.output
    model = tmp_path / "teacher" / "model.safetensors"
    result = runner.invoke(app, ["distil", str(model), *ARGUMENTS, "--out", str(tmp_path / "student")], env=environment)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "student" / "training.json").read_text())
    assert summary["config"]["distil"]["teacher"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert summary["history"][0]["feature"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "distil.method=cwd"], "use `damoserve-compress distil`"),
        (["--device", "foo"], "no device foo"),
        (["--recipe", "nothing"], "no training recipe nothing"),
        (["--variant", "Q"], "unknown variant 'Q'"),
    ],
)
def test_wishes_that_cannot_be_met_are_told_before_anything_is_written(
    tmp_path: Path, data: Path, arguments: list[str], message: str
) -> None:
    command = ["train", *ARGUMENTS, "--data", str(data), "--out", str(tmp_path / "out"), *arguments]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert message in result.output.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_faults_are_told_in_one_line(tmp_path: Path, data: Path) -> None:
    arguments = ["train", "--model", "cells", "--data", str(data), "--out", str(tmp_path / "out"), "--size", "65"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.output.splitlines() == ["Error: training recipe default: size: Input should be a multiple of 32"]
