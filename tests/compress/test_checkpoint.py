"""Checkpoints: those of the reference of both generations, and our own."""

import json
import zlib
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from damoserve_compress.cli import app
from damoserve_compress.labels import COCO_LABELS, LabelsError, read_labels
from damoserve_compress.network import VARIANTS, Network, Structure, build_network
from damoserve_compress.network.checkpoint import CheckpointError, Description, load_checkpoint, save_checkpoint
from damoserve_compress.network.reference import Generation, ReferenceOptions, load_reference
from damoserve_compress.network.structures import StructureError, write_structure
from damoserve_profiles.manifest import InputSpec
from tests.compress.family import MOBILE, golden_value

BUNDLED = Path(__file__).parents[2] / "profiles" / "checkpoints" / "blood-cells.safetensors"
SMALL = "Ns"
COCO = read_labels(COCO_LABELS)
CELLS = ("RBC", "WBC", "Platelets")
OWN = replace(MOBILE, name="own", input_size=128)


def weights(variant: str | Structure = SMALL, channels: int = 81) -> dict[str, Tensor]:
    """One number, told from the key, in every element of a tensor: as good as any, and small on disk."""
    with torch.device("meta"):
        like = build_network(variant, channels).state_dict()
    return {
        key: torch.tensor(zlib.crc32(key.encode()) % 1000).to(tensor.dtype).expand(tensor.shape)
        for key, tensor in like.items()
    }


def equal(network: Network, expected: dict[str, Tensor]) -> bool:
    state = network.state_dict()
    return list(state) == list(expected) and all(torch.equal(state[key], expected[key]) for key in expected)


def sliced(tensors: dict[str, Tensor], classes: int) -> dict[str, Tensor]:
    return {key: tensor[:classes] if ".gfl_cls." in key else tensor for key, tensor in tensors.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_variant_is_that_of_the_tensors(variant: str, path: Path) -> None:
    tensors = weights(variant, 80)
    torch.save({"model": tensors}, path)
    found = load_reference(path)
    assert (found.network.variant, found.generation, found.resize, found.labels) == (variant, "v0.3", "stretch", COCO)
    assert equal(found.network, tensors)
    assert not found.network.training


def test_a_legacy_checkpoint_loses_its_last_class_and_keeps_aspects(path: Path) -> None:
    tensors = {key: golden_value(key, tuple(tensor.shape)) for key, tensor in weights(channels=81).items()}
    torch.save({"model": tensors}, path)
    found = load_reference(path)
    assert (found.network.variant, found.generation, found.resize, found.labels) == (SMALL, "legacy", "fit", COCO)
    assert equal(found.network, sliced(tensors, 80))
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64))).float()
    whole = build_network(SMALL, 81).eval()
    whole.load_state_dict(tensors)
    with torch.inference_mode():
        for ours, theirs in zip(found.network(image), whole(image), strict=True):
            torch.testing.assert_close(ours, theirs[..., :80], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("zipped", [True, False])
def test_every_container_that_the_reference_writes_is_read(path: Path, zipped: bool) -> None:
    tensors = weights(channels=80)
    distributed = OrderedDict((f"module.{key}", tensor) for key, tensor in tensors.items())
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1).state_dict()
    saved_by_trainer = {"epoch": 7, "model": distributed, "optimizer": optimiser, "feature_loss": {"w": torch.ones(2)}}
    for content in (distributed, tensors, saved_by_trainer):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        assert equal(load_reference(path).network, tensors)


@pytest.mark.parametrize(
    ("channels", "labels", "given", "generation"),
    [
        (3, CELLS, None, "v0.3"),
        (4, CELLS, None, "legacy"),
        (3, CELLS, "legacy", "legacy"),
        (4, CELLS, "v0.3", "v0.3"),
        (81, None, "v0.3", "v0.3"),
        (80, None, "legacy", "legacy"),
        (81, (*COCO, "unicorn"), None, "v0.3"),
    ],
)
def test_the_count_of_labels_tells_the_generation_unless_it_is_given(
    path: Path, channels: int, labels: tuple[str, ...] | None, given: Generation | None, generation: Generation
) -> None:
    tensors = weights(channels=channels)
    torch.save({"model": tensors}, path)
    found = load_reference(path, ReferenceOptions(labels=labels, generation=given))
    assert (found.generation, found.labels) == (generation, labels or COCO)
    assert found.resize == {"legacy": "fit", "v0.3": "stretch"}[generation]
    assert equal(found.network, sliced(tensors, len(found.labels)))


@pytest.mark.parametrize(
    ("channels", "labels", "message"),
    [
        (3, ("a",), "has 3 class channels: it needs 3 labels, or 2 if it is a legacy checkpoint; 1 are given"),
        (3, None, "has 3 class channels, so its labels are not COCO's"),
    ],
)
def test_other_counts_of_labels_are_refused(
    path: Path, channels: int, labels: tuple[str, ...] | None, message: str
) -> None:
    torch.save({"model": weights(channels=channels)}, path)
    with pytest.raises(CheckpointError, match=message):
        load_reference(path, ReferenceOptions(labels=labels))


def test_what_differs_is_named_with_the_likeliest_variant(path: Path) -> None:
    tensors = weights(channels=80)
    lost, *_, odd = (key for key in tensors if key.startswith("backbone."))
    del tensors[lost]
    tensors |= {odd: torch.zeros(1, 2), "head.extra": torch.zeros(1)}
    torch.save({"model": tensors}, path)
    with pytest.raises(CheckpointError) as caught:
        load_reference(path)
    assert str(caught.value).endswith(
        f"is not DAMO-YOLO Ns: 1 missing: {lost}; 1 unexpected: head.extra; 1 of another shape: {odd} is (1, 2) "
        f"instead of (). The likeliest variant is Ns, which has {len(tensors) - 2} of the file's {len(tensors)} tensors"
    )


def test_a_head_of_another_kind_is_told(path: Path) -> None:
    tensors = {key: tensor for key, tensor in weights().items() if ".gfl_cls." not in key}
    torch.save({"model": tensors}, path)
    with pytest.raises(CheckpointError, match=r"not DAMO-YOLO Ns: 6 missing: head.gfl_cls.0.weight, .* variant is Ns"):
        load_reference(path, ReferenceOptions(labels=CELLS))


def test_a_wrong_variant_is_told_from_the_right_one(path: Path) -> None:
    tensors = weights("T", 80)
    torch.save({"model": tensors}, path)
    first, second, third, fourth = list(tensors)[:4]
    message = (
        rf"not DAMO-YOLO P: \d+ of another shape: {first} .*{second} .*{third} .* and so on\. The likeliest .* is T"
    )
    with pytest.raises(CheckpointError, match=message) as caught:
        load_reference(path, ReferenceOptions(variant="P"))
    assert fourth not in str(caught.value)
    assert equal(load_reference(path, ReferenceOptions(variant="T")).network, tensors)
    with pytest.raises(StructureError, match="unknown variant"):
        load_reference(path, ReferenceOptions(variant="X"))


class Custom:
    """What only unpickling could read."""


@pytest.mark.parametrize("content", [{"model": Custom()}, {"model": {}, "args": Custom()}])
def test_objects_are_never_unpickled(path: Path, content: object) -> None:
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"holds an object of .*\.Custom, which would run code.*save its weights"):
        load_reference(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "neither a `model` nor a bare dictionary of tensors"),
        ({"epoch": 3}, "neither a `model` nor a bare dictionary of tensors"),
        ({"model": {}}, "586 missing: .* 0 of the file's 0 tensors"),
        ({"model": {"conv.weight": torch.ones(1)}}, "1 unexpected: conv.weight. .* 0 of the file's 1 tensors"),
    ],
)
def test_other_contents_are_refused(path: Path, content: object, message: str) -> None:
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        load_reference(path)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_damaged_files_are_refused(path: Path, share: float) -> None:
    torch.save({"model": weights()}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="not a PyTorch checkpoint, or a damaged one"):
        load_reference(path)


def test_noise_and_missing_files_are_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        load_reference(path)
    path.write_bytes(b"noise" * 100)
    with pytest.raises(CheckpointError, match="not a PyTorch checkpoint"):
        load_reference(path)


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
    done = CliRunner().invoke(app, [*arguments, "--generation", "v0.3", "--size", "320", "--variant", SMALL])
    assert done.exit_code == 0, done.output
    assert load_checkpoint(target)[1] == Description("cells", SMALL, CELLS, 320, 320, "stretch")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--variant", "T", "not DAMO-YOLO T"),
        ("--variant", "X", "unknown variant"),
        ("--labels", "none.txt", "not a readable list"),
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


def test_checkpoints_from_before_there_were_modes_are_stretched() -> None:
    network, description = load_checkpoint(BUNDLED)
    with safe_open(BUNDLED, framework="pt") as file:
        assert "resize" not in json.loads(file.metadata()["damoserve"])
    assert description == Description("blood-cells", "P", CELLS, 416, 416, "stretch")
    assert network.variant == "P"


@pytest.mark.parametrize(
    "change",
    [{"resize": "squeeze"}, {"labels": []}, {"width": 0}, {"variant": "X"}, {"colour": "BGR"}, {"model": None}],
)
def test_headers_that_are_not_understood_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    header = {"model": "m", "variant": "P", "labels": ["a"], "width": 64, "height": 64} | change
    target = tmp_path / "c.safetensors"
    save_file({"x": torch.ones(1)}, target, metadata={"damoserve": json.dumps(header)})
    with pytest.raises(CheckpointError, match="a header that this version cannot read"):
        load_checkpoint(target)


def test_coco_has_80_labels() -> None:
    assert len(COCO) == 80
    assert (COCO[0], COCO[-1]) == ("person", "toothbrush")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n \n", "holds no label"), (b"a\nb\na\n", "more than once: a"), (b"\xff\xfe", "not a readable list")],
)
def test_lists_of_labels_that_cannot_be_used_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(LabelsError, match=message):
        read_labels(path)
