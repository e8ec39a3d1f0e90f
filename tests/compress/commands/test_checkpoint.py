"""`convert` and `publish`."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from damoserve_compress.cli import app
from damoserve_compress.network import build_network
from damoserve_compress.network.checkpoint import Description, load_checkpoint, save_checkpoint
from damoserve_compress.network.structures import write_structure
from damoserve_profiles.manifest import InputSpec
from tests.support.compress.families import MOBILE
from tests.support.compress.reference_weights import SMALL, equal, sliced, weights

CELLS = ("RBC", "WBC", "Platelets")
OWN = replace(MOBILE, name="own", input_size=128)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


def test_the_command_makes_one_of_ours_with_its_preprocessing(path: Path, tmp_path: Path) -> None:
    torch.save({"model": weights(channels=4)}, path)
    labels, target = tmp_path / "labels.txt", tmp_path / "new" / "cells.safetensors"
    labels.write_text("RBC\nWBC\n\nPlatelets\n")
    arguments = ["convert", str(path), str(target), "--model", "cells", "--labels", str(labels)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "Ns of generation legacy, 3 labels, 416 px, images resized by fit" in done.output
    network, description = load_checkpoint(target)
    assert description == Description("cells", SMALL, CELLS, 416, 416, "fit")
    assert description.input == InputSpec(width=416, height=416, resize="fit")
    assert equal(network, sliced(weights(channels=4), 3))
    with safe_open(target, framework="pt") as file:
        assert {str(file.get_tensor(key).dtype) for key in file.keys()} == {"torch.float32", "torch.int64"}  # noqa: SIM118
    done = CliRunner().invoke(app, [*arguments, "--resize", "stretch", "--size", "320", "--variant", SMALL])
    assert done.exit_code == 0, done.output
    assert load_checkpoint(target)[1] == Description("cells", SMALL, CELLS, 320, 320, "stretch")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--variant", "T", "not DAMO-YOLO T"),
        ("--variant", "X", "unknown variant"),
        ("--labels", "none.txt", "not a readable list"),
        ("--model", "../x", "Error: model: String should match pattern"),
    ],
)
def test_the_command_tells_what_is_wrong_in_one_line(
    path: Path, tmp_path: Path, option: str, value: str, message: str
) -> None:
    torch.save({"model": weights()}, path)
    target = tmp_path / "out.safetensors"
    failed = CliRunner().invoke(app, ["convert", str(path), str(target), "--model", "m", option, value])
    assert failed.exit_code == 1
    assert failed.output.startswith("Error: ")
    assert message in failed.output
    assert failed.output.count("\n") == 1
    assert not target.exists()


def test_the_side_must_be_a_multiple_of_32(path: Path, tmp_path: Path) -> None:
    torch.save({"model": weights()}, path)
    failed = CliRunner().invoke(app, ["convert", str(path), str(tmp_path / "out"), "--model", "m", "--size", "100"])
    assert failed.exit_code == 2
    assert "multiple of 32" in failed.output


def test_a_network_of_one_s_own_structure_loads_without_its_file(path: Path, tmp_path: Path) -> None:
    structure, target = tmp_path / "own.yaml", tmp_path / "own.safetensors"
    write_structure(structure, OWN)
    tensors = weights(OWN, 80)
    torch.save({"model": tensors}, path)
    done = CliRunner().invoke(app, ["convert", str(path), str(target), "--model", "mine", "--variant", str(structure)])
    assert done.exit_code == 0, done.output
    structure.unlink()
    network, description = load_checkpoint(target)
    assert network.structure == OWN
    assert (description.variant, description.width) == ("own", 128)
    assert equal(network, tensors)


def test_publishing_halves_the_file(tmp_path: Path) -> None:
    trained, target = tmp_path / "trained.safetensors", tmp_path / "new" / "published.safetensors"
    network = build_network(OWN, 3).eval()
    save_checkpoint(trained, network, Description("cells", OWN.name, CELLS, 64, 64, "fit"))
    done = CliRunner().invoke(app, ["publish", str(trained), str(target)])
    assert done.exit_code == 0, done.output
    published, description = load_checkpoint(target)
    assert description == Description("cells", OWN.name, CELLS, 64, 64, "fit")
    assert target.stat().st_size < 0.6 * trained.stat().st_size
    for key, value in published.state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[key], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("command", ["convert", "publish"])
def test_a_target_that_cannot_be_written_is_told_in_one_line(command: str, path: Path, tmp_path: Path) -> None:
    if command == "convert":
        torch.save({"model": weights()}, path)
    else:
        save_checkpoint(path, build_network(OWN, 3), Description("m", OWN.name, CELLS, 64, 64))
    (tmp_path / "file").write_text("")
    (tmp_path / ".taken.partial").mkdir()
    for target in ("file/c.safetensors", "taken"):
        arguments = [command, str(path), str(tmp_path / target)]
        failed = CliRunner().invoke(app, [*arguments, "--model", "m"] if command == "convert" else arguments)
        assert failed.exit_code == 1
        assert failed.output.startswith("Error: ")
        assert failed.output.count("\n") == 1
