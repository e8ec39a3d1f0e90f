"""Cut networks are smaller, still work, and keep what they were told to keep."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from damoserve_compress.network import Network, Structure, build_network, fuse
from damoserve_compress.network.checkpoint import CheckpointError, Description, load_checkpoint, save_checkpoint
from damoserve_compress.prune import ChannelGroup, PruneError, cut, find_groups, kept_channels, uniform
from damoserve_profiles.recipe import FineTune, Importance, Prune
from tests.support.compress.families import FAMILIES

RATIO, ROUND_TO = 0.2, 8
DESCRIPTION = Description("cells", "P", ("RBC", "WBC", "Platelets"), 64, 64)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return build_network("P", 3).eval()


@pytest.fixture(scope="module")
def groups(network: Network) -> list[ChannelGroup]:
    return find_groups(network, "l1")


@pytest.fixture(scope="module")
def pruned(network: Network, groups: list[ChannelGroup]) -> Network:
    return cut(network, groups, uniform(groups, RATIO, ROUND_TO)).eval()


def convolutions(network: Network) -> dict[str, torch.nn.Conv2d]:
    return {name: module for name, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)}


def test_about_a_fifth_of_the_channels_goes(network: Network, pruned: Network) -> None:
    before, after = (sum(conv.out_channels for conv in convolutions(n).values()) for n in (network, pruned))
    assert 0.15 < 1 - after / before < 0.25


def test_widths_are_multiples_and_the_heads_outputs_stay(network: Network, pruned: Network) -> None:
    for name, conv in convolutions(pruned).items():
        original = convolutions(network)[name].out_channels
        expected = original if "head" in name else kept_channels(original, RATIO, ROUND_TO)
        assert conv.out_channels == expected, name


@given(channels=st.integers(1, 512), ratio=st.floats(0, 1), round_to=st.sampled_from([1, 8, 16, 32]))
def test_the_nearest_multiple_stays(channels: int, ratio: float, round_to: int) -> None:
    kept = kept_channels(channels, ratio, round_to)
    assert 0 < kept <= channels
    assert kept == channels or kept % round_to == 0
    if round_to <= kept < channels:
        assert abs(kept - channels * (1 - ratio)) <= max(round_to / 2, round_to - channels * (1 - ratio)) + 1e-9


def test_groups_are_told_by_their_root_and_have_a_stage(network: Network, groups: list[ChannelGroup]) -> None:
    stages = {group.stage for group in groups}
    assert {"neck.merge_3", "neck.bu_conv13"} < stages
    assert {f"backbone.block_list.{index}" for index in range(6)} < stages
    roots = [group.root for group in groups]
    assert len(set(roots)) == len(roots) < len(convolutions(network))


@pytest.mark.parametrize("importance", ["l1", "bn_scale", "taylor"])
def test_the_channels_that_matter_least_go(importance: Importance) -> None:
    torch.manual_seed(0)
    network = build_network("P", 3).eval()
    backbone: Any = network.backbone
    block = backbone.block_list[2].block_list[0]
    doomed = [3, 5, 8, 13, 17, 21, 25, 30]
    with torch.no_grad():
        block.conv1.conv1.weight[doomed] *= 1e-3
        block.conv2.rbr_dense.conv.weight[:, doomed] *= 1e-3
        block.conv2.rbr_1x1.conv.weight[:, doomed] *= 1e-3
        block.conv1.bn1.weight[doomed] *= 1e-3
        block.conv1.bn1.bias.copy_(torch.arange(32))  # names the channels
    for name, parameter in network.named_parameters():
        # A loss that falls with the size of every weight: what a channel is worth to it is the sum of its sizes.
        parameter.grad = torch.zeros_like(parameter) if name.endswith("bias") else parameter.detach().sign()
    groups = find_groups(network, importance)
    backbone = cut(network, groups, uniform(groups, RATIO, ROUND_TO)).backbone
    after = backbone.block_list[2].block_list[0]
    assert after.conv1.bn1.bias.tolist() == [channel for channel in range(32) if channel not in doomed]


@pytest.mark.parametrize("structure", FAMILIES, ids=lambda structure: structure.family)
def test_a_group_by_itself_can_be_cut_in_every_family(structure: Structure) -> None:
    torch.manual_seed(1)
    network = build_network(structure, 3).eval()
    groups = find_groups(network, "l1")
    for group in groups:
        smaller = cut(network, groups, {group.root: max(1, group.channels // 2)}).eval()
        with torch.inference_mode():
            scores, boxes = smaller(torch.rand(1, 3, 64, 64) * 255)
        assert scores.isfinite().all()
        assert boxes.isfinite().all()


def test_more_channels_than_there_are_cannot_stay(network: Network, groups: list[ChannelGroup]) -> None:
    with pytest.raises(PruneError, match="channels, of which"):
        cut(network, groups, {groups[0].root: groups[0].channels + 1})


@pytest.mark.parametrize(
    "amounts",
    [
        {},
        {"ratio": 0.2, "macs": 0.5},
        {"ratio": 0.2, "steps": 2},
        {"ratio": 0.2, "allocation": "sensitivity"},
        {"network": "cut.safetensors"},
    ],
)
def test_a_recipe_says_in_one_way_how_much_goes(amounts: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"how much is cut|in one step|cut before"):
        Prune.model_validate({"fine_tune": FineTune(epochs=1, learning_rate=1e-3), **amounts})


def test_the_original_is_left_alone(network: Network, groups: list[ChannelGroup]) -> None:
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    cut(network, groups, uniform(groups, RATIO, ROUND_TO))
    assert not network.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_a_pruned_network_trains_and_fuses(pruned: Network) -> None:
    images = torch.rand(2, 3, 64, 64) * 255
    raw = pruned.train()(images)
    (raw.class_logits.sum() + raw.box_logits.sum()).backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())
    pruned.eval()
    with torch.inference_mode():
        for left, right in zip(pruned(images), fuse(pruned)(images), strict=True):
            assert torch.allclose(left, right, rtol=1e-3, atol=5e-2)


def test_a_pruned_network_comes_back_from_its_checkpoint(pruned: Network, tmp_path: Path) -> None:
    path = tmp_path / "pruned.safetensors"
    save_checkpoint(path, pruned, DESCRIPTION)
    loaded, description = load_checkpoint(path)
    assert description == DESCRIPTION
    assert loaded.state_dict().keys() == pruned.state_dict().keys()
    assert all(torch.equal(tensor, pruned.state_dict()[key]) for key, tensor in loaded.state_dict().items())


def test_half_precision_spares_the_statistics(network: Network, tmp_path: Path) -> None:
    backbone: Any = network.backbone
    backbone.block_list[0].conv.bn.running_var[0] = 1e6  # more than 16 bits hold
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, network, DESCRIPTION, torch.float16)
    loaded, _ = load_checkpoint(path)
    backbone = loaded.backbone
    assert backbone.block_list[0].conv.bn.running_var[0] == 1e6
    assert loaded.head.gfl_cls[0].weight.dtype == torch.float32
    assert path.stat().st_size < 5_000_000


def test_other_files_are_refused(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "wrong.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a readable"):
        load_checkpoint(path)
    save_checkpoint(path, network, Description("cells", "P", ("RBC", "WBC"), 64, 64))
    with pytest.raises(CheckpointError, match="variant P with 2 labels"):
        load_checkpoint(path)
