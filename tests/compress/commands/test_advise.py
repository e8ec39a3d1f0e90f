"""`damoserve-compress advise`, on the bundled model and on one that is built on the way."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner, Result

import damoserve_compress.advise
import damoserve_profiles.repository
from damoserve_compress.build.builder import Builder
from damoserve_compress.cli import app
from damoserve_compress.commands import options
from damoserve_compress.datasets.coco import write_coco
from damoserve_compress.datasets.rendered import RenderedSmears
from damoserve_compress.network import build_network
from damoserve_compress.network.checkpoint import Description, save_checkpoint
from damoserve_profiles.manifest import DataSource
from damoserve_profiles.repository import Repository
from tests.support.compress.random_detections import all_found

LABELS = ("RBC", "WBC", "Platelets")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["advise", *map(str, arguments)])


def test_without_limits_the_most_accurate_is_recommended() -> None:
    result = run()
    assert result.exit_code == 0, result.output
    assert "recommended: int8+pruned" in result.stdout
    assert "dominated by int8+pruned" in result.stdout
    assert "times are of onnxruntime" in result.stdout


def test_what_breaks_a_limit_is_told() -> None:
    result = run("--model", "blood-cells", "--max-bytes", "2000000")
    assert result.exit_code == 0
    assert "has 32760650 bytes, more than 2000000" in result.stdout


def test_limits_that_nothing_keeps_end_with_1_and_say_what_to_do() -> None:
    result = run("--max-latency-ms", "0.01")
    assert result.exit_code == 1
    assert "recommended" not in result.output
    assert "no profile keeps the limits" in result.stderr
    assert "loosen a limit" in result.stderr


def test_a_model_that_is_not_there_can_only_be_built() -> None:
    result = run("--model", "nothing", "--max-latency-ms", "10")
    assert result.exit_code == 1
    assert "not built yet: int8+pruned" in result.stderr
    assert "--build CHECKPOINT" in result.stderr


def test_an_empty_repository_needs_a_model(tmp_path: Path) -> None:
    result = run("--repository", tmp_path)
    assert result.exit_code == 1
    assert "say which with --model" in result.stderr


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "cells.safetensors"
    save_checkpoint(path, build_network("P", 3), Description("cells", "P", LABELS, 96, 96))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    annotations = write_coco(RenderedSmears(3, seed=1, size=(160, 120)), folder)
    for name in ("train.json", "val.json"):
        (folder / name).write_bytes(annotations.read_bytes())
    return folder


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "fp32.yaml").write_text(yaml.safe_dump({"export": {"candidates": 50}}))
    (folder / "int8.yaml").write_text(yaml.safe_dump({"quantise": {"calibration_images": 2}}))
    monkeypatch.setattr(damoserve_compress.advise, "RECIPES", folder)
    return folder


def test_the_missing_profile_is_built_and_no_more_than_that(
    checkpoint: Path, data: Path, recipes: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    limits = ("--repository", repository, "--model", "cells", "--max-bytes", "4000000")
    build = ("--build", checkpoint, "--data", data, "--work", tmp_path / "work")
    result = run(*limits)
    assert result.exit_code == 1
    assert "not built yet: int8, which computes in 8 bits" in result.stderr
    result = run(*limits, *build)
    assert result.exit_code == 0, result.output
    assert "recommended: int8" in result.stdout
    assert [folder.profile for folder in Repository(repository).profiles("cells", 1)] == ["int8"]
    assert "building" not in run(*limits, *build).output
    # Two bytes are too few for anything: what does less than int8 is not tried.
    result = run("--repository", repository, "--model", "cells", "--max-bytes", "2", *build)
    assert result.exit_code == 1
    assert [folder.profile for folder in Repository(repository).profiles("cells", 1)] == ["int8"]


def test_a_recipe_that_fails_itself_does_not_keep_the_next_from_being_tried(
    checkpoint: Path, data: Path, recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Builder, "source_detections", all_found(RenderedSmears(3, seed=1, size=(160, 120))))
    (recipes / "int8.yaml").write_text("{quantise: {calibration_images: 2}, max_ap_drop: 0.1}")
    repository = tmp_path / "repository"
    model = ("--repository", repository, "--model", "cells")
    build = ("--build", checkpoint, "--data", data, "--work", tmp_path / "work")
    result = run(*model, "--max-bytes", "90000000", *build)
    assert result.exit_code == 0, result.output
    assert "its recipe allows 0.1" in result.stdout
    assert "recommended: fp32" in result.stdout
    result = run(*model, "--max-bytes", "2", *build)
    assert result.exit_code == 1
    assert result.output.count("its recipe allows 0.1") == 1
    assert [folder.profile for folder in Repository(repository).profiles("cells", 1)] == ["fp32"]


def test_what_a_killed_build_left_is_built_again(checkpoint: Path, data: Path, recipes: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    folder = Repository(repository).folder("cells", 1, "int8")
    folder.path.mkdir(parents=True)
    folder.model_path.write_bytes(b"half")
    limits = ("--repository", repository, "--model", "cells", "--max-bytes", "4000000")
    result = run(*limits)
    assert "not built yet: int8" in result.stderr
    result = run(*limits, "--build", checkpoint, "--data", data, "--work", tmp_path / "work")
    assert result.exit_code == 0, result.output
    folder.verify()


def test_recipes_for_openvino_are_named_on_request() -> None:
    limits = ("--model", "nothing", "--max-latency-ms", "10")
    assert "bf16" not in run(*limits).stderr
    assert "not built yet: bf16, which computes in bfloat16" in run(*limits, "--openvino").stderr


def test_building_for_openvino_needs_it(
    checkpoint: Path, data: Path, recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    build = ("--build", checkpoint, "--data", data, "--work", tmp_path / "work", "--openvino")
    result = run("--repository", tmp_path / "repository", "--model", "cells", *build)
    assert result.exit_code == 1
    assert "OpenVINO is not installed: install damoserve[openvino]" in result.stderr
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("setting", ["tail_epochs=3", "rendered=5", "epochs=9", "size=320", "distil.method=mimic"])
@pytest.mark.parametrize("command", ["prune", "build"])
def test_settings_that_cut_networks_do_not_follow_are_refused(
    command: str, setting: str, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "pruned.yaml"
    recipe.write_text("prune: {macs: 0.5, fine_tune: {epochs: 1, learning_rate: 0.001}}")
    arguments = [command, checkpoint, "--data", data, "--work", tmp_path / "work", "--recipe", recipe, "--set", setting]
    arguments += ["--repository", tmp_path / "repository"] if command == "build" else []
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 1
    assert f"Error: --set {setting} cannot be had for cut networks: " in result.stderr


def test_a_build_writes_down_the_licences(checkpoint: Path, data: Path, recipes: Path, tmp_path: Path) -> None:
    told = {"info": {"description": "rendered smears", "license": "CC0-1.0"}}
    for name in ("train.json", "val.json"):
        (data / name).write_text(json.dumps(json.loads((data / name).read_bytes()) | told))
    build = ("build", checkpoint, "--data", data, "--work", tmp_path / "work", "--repository", tmp_path / "repository")
    more = ("--recipe", recipes / "fp32.yaml", "--rounds", "1", "--license", "MIT")
    result = CliRunner().invoke(app, list(map(str, (*build, *more))))
    assert result.exit_code == 0, result.output
    manifest = Repository(tmp_path / "repository").folder("cells", 1, "fp32").read_manifest()
    assert (manifest.license, manifest.data) == ("MIT", (DataSource(name="rendered smears", license="CC0-1.0"),))


@pytest.mark.parametrize("command", [["advise"], ["benchmark"], ["report", "--plot", "plot.svg"]])
def test_without_the_bundled_models_the_commands_say_what_to_install(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "damoserve_models" / "repository"
    monkeypatch.setattr(options, "BUNDLED", missing)
    monkeypatch.setattr(damoserve_profiles.repository, "BUNDLED", missing)
    place = [missing] if command[0] == "report" else ["--repository", missing]
    result = CliRunner().invoke(app, list(map(str, (*command, *place))))
    assert result.exit_code == 2
    assert "pip install damoserve-models" in " ".join(result.stderr.replace("│", " ").split())


def test_a_checkpoint_of_another_model_is_refused(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    build = ("--build", checkpoint, "--data", data, "--work", tmp_path / "work")
    result = run("--repository", tmp_path / "repository", "--model", "dogs", *build)
    assert result.exit_code == 1
    assert "is of the model cells, not dogs" in result.stderr


def test_building_needs_data_and_a_work_folder(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAMOSERVE_DATA", raising=False)
    result = run("--build", checkpoint)
    assert result.exit_code == 2
    assert "needs --data and --work" in result.stderr
