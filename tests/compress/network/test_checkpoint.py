"""Our own checkpoints."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from damoserve_compress.network import VARIANTS, build_network
from damoserve_compress.network.checkpoint import CheckpointError, Description, load_checkpoint, save_checkpoint
from damoserve_compress.network.structures import write_structure
from tests.support.compress.families import MOBILE
from tests.support.compress.reference_weights import SMALL, equal

BUNDLED = Path(__file__).parents[3] / "profiles" / "checkpoints" / "blood-cells.safetensors"
CELLS = ("RBC", "WBC", "Platelets")
OWN = replace(MOBILE, name="own", input_size=128)


def test_the_header_has_the_structure_only_where_it_is_no_variant(tmp_path: Path) -> None:
    for structure in (VARIANTS[SMALL], OWN, replace(OWN, name=SMALL)):
        target = tmp_path / "c.safetensors"
        save_checkpoint(target, build_network(structure, 3), Description("m", structure.name, CELLS, 64, 64))
        with safe_open(target, framework="pt") as file:
            header = json.loads(file.metadata()["damoserve"])
        assert ("structure" in header) == (structure != VARIANTS[SMALL])
        assert load_checkpoint(target)[0].structure == structure


def test_a_narrower_depthwise_block_takes_its_width_from_its_tensors(tmp_path: Path) -> None:
    first, *others = MOBILE.stages
    narrow = build_network(replace(MOBILE, stages=(replace(first, bottleneck=24), *others)), 3).eval()
    narrow.structure = MOBILE  # as in a pruned network
    save_checkpoint(tmp_path / "c.safetensors", narrow, Description("m", MOBILE.name, CELLS, 64, 64))
    loaded, _ = load_checkpoint(tmp_path / "c.safetensors")
    assert equal(loaded, narrow.state_dict())
    with torch.inference_mode():
        for ours, theirs in zip(loaded(torch.ones(1, 3, 64, 64)), narrow(torch.ones(1, 3, 64, 64)), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_checkpoints_from_before_there_were_modes_are_stretched(tmp_path: Path) -> None:
    with safe_open(BUNDLED, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["damoserve"])
    del header["resize"]
    path = tmp_path / "old.safetensors"
    save_file(tensors, path, {"damoserve": json.dumps(header)})
    network, description = load_checkpoint(path)
    assert description == Description("blood-cells", "T", CELLS, 416, 416, "stretch")
    assert network.variant == "T"


@pytest.mark.parametrize(
    "change",
    [
        {"resize": "squeeze"},
        {"labels": []},
        {"width": 0},
        {"variant": "X"},
        {"colour": "BGR"},
        {"model": None},
        {"model": "../m"},
        {"structure": []},
    ],
)
def test_headers_that_are_not_understood_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    header = {"model": "m", "variant": "P", "labels": ["a"], "width": 64, "height": 64} | change
    target = tmp_path / "c.safetensors"
    save_file({"x": torch.ones(1)}, target, metadata={"damoserve": json.dumps(header)})
    with pytest.raises(CheckpointError, match="a header that this version cannot read"):
        load_checkpoint(target)


@pytest.mark.parametrize("header", ["[]", "3", "{", "null"])
def test_headers_without_fields_are_refused(tmp_path: Path, header: str) -> None:
    target = tmp_path / "c.safetensors"
    save_file({"x": torch.ones(1)}, target, metadata={"damoserve": header})
    with pytest.raises(CheckpointError, match="a header that this version cannot read"):
        load_checkpoint(target)


def test_a_variant_in_a_header_is_never_opened_as_a_file(tmp_path: Path) -> None:
    structure, target = tmp_path / "own.yaml", tmp_path / "c.safetensors"
    write_structure(structure, OWN)
    header = {"model": "m", "variant": str(structure), "labels": CELLS, "width": 64, "height": 64}
    save_file(build_network(OWN, 3).state_dict(), target, metadata={"damoserve": json.dumps(header)})
    with pytest.raises(CheckpointError, match=r"there is no variant .*own\.yaml"):
        load_checkpoint(target)


CONV, DEPTHWISE, NORM = (
    "backbone.block_list.0.conv.conv1.weight",
    "backbone.block_list.1.block_list.0.conv.3.weight",
    "backbone.block_list.0.conv.bn1.weight",
)


@pytest.mark.parametrize(
    ("key", "tensor"),
    [
        (CONV, torch.ones(3)),
        (CONV, torch.ones(())),
        (CONV, torch.ones(8, 3, 3, 3, 1)),
        (CONV, torch.ones(0, 3, 3, 3)),
        (DEPTHWISE, torch.ones(0, 1, 5, 5)),
        (NORM, torch.tensor(1.0)),
        (NORM, torch.ones(8, 1)),
    ],
)
def test_tensors_of_shapes_that_no_layer_has_are_refused(tmp_path: Path, key: str, tensor: Tensor) -> None:
    target = tmp_path / "c.safetensors"
    save_checkpoint(target, build_network(OWN, 3), Description("m", OWN.name, CELLS, 64, 64))
    with safe_open(target, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert key in tensors
    save_file(tensors | {key: tensor}, target, metadata=metadata)
    with pytest.raises(CheckpointError, match="does not hold variant own with 3 labels"):
        load_checkpoint(target)
