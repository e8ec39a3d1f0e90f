"""Checkpoints of the reference, of both generations and in every container."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from damoserve_compress.datasets.labels import COCO_LABELS, read_labels
from damoserve_compress.network import VARIANTS, build_network
from damoserve_compress.network.checkpoint import CheckpointError
from damoserve_compress.network.reference import Generation, ReferenceOptions, load_reference
from damoserve_compress.network.structures import StructureError
from damoserve_profiles.imaging import ResizeMode
from tests.support.compress.families import golden_value
from tests.support.compress.reference_weights import SMALL, equal, sliced, weights

COCO = read_labels(COCO_LABELS)
CELLS = ("RBC", "WBC", "Platelets")


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
    ("channels", "labels", "given", "found_as"),
    [
        (3, CELLS, None, ("v0.3", "stretch")),
        (4, CELLS, None, ("legacy", "fit")),
        (3, CELLS, "fit", ("v0.3", "fit")),
        (4, CELLS, "stretch", ("legacy", "stretch")),
        (81, None, "stretch", ("legacy", "stretch")),
        (80, None, "fit", ("v0.3", "fit")),
        (81, (*COCO, "unicorn"), None, ("v0.3", "stretch")),
    ],
)
def test_the_count_of_labels_tells_the_generation_and_that_the_mode_unless_it_is_given(
    path: Path,
    channels: int,
    labels: tuple[str, ...] | None,
    given: ResizeMode | None,
    found_as: tuple[Generation, ResizeMode],
) -> None:
    tensors = weights(channels=channels)
    torch.save({"model": tensors}, path)
    found = load_reference(path, ReferenceOptions(labels=labels, resize=given))
    assert ((found.generation, found.resize), found.labels) == (found_as, labels or COCO)
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
