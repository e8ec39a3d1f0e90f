"""Cut networks are smaller, still work, and keep what they were told to keep."""

from pathlib import Path

import pytest
import torch

from damoserve_compress.network import Network, build_network, fuse
from damoserve_compress.network.checkpoint import CheckpointError, Description, load_checkpoint, save_checkpoint
from damoserve_compress.prune import kept_channels, prune
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import FineTune, Prune

OPTIONS = Prune(ratio=0.2, round_to=8, fine_tune=FineTune(epochs=1, learning_rate=1e-3))
DESCRIPTION = Description("cells", "P", ("RBC", "WBC", "Platelets"), 64, 64)
SIZE = Size(64, 64)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return build_network("P", 3).eval()


@pytest.fixture(scope="module")
def pruned(network: Network) -> Network:
    return prune(network, SIZE, OPTIONS)


def convolutions(network: Network) -> dict[str, torch.nn.Conv2d]:
    return {name: module for name, module in network.named_modules() if isinstance(module, torch.nn.Conv2d)}


def test_about_a_fifth_of_the_channels_goes(network: Network, pruned: Network) -> None:
    before, after = (sum(conv.out_channels for conv in convolutions(n).values()) for n in (network, pruned))
    assert 0.15 < 1 - after / before < 0.25


def test_widths_are_multiples_and_the_heads_outputs_stay(network: Network, pruned: Network) -> None:
    for name, conv in convolutions(pruned).items():
        original = convolutions(network)[name].out_channels
        expected = original if "head" in name else kept_channels(original, OPTIONS)
        assert conv.out_channels == expected, name


def test_the_channels_with_the_smallest_norm_go() -> None:
    torch.manual_seed(0)
    network = build_network("P", 3).eval()
    block = network.backbone.block_list[2].block_list[0]
    doomed = [3, 5, 8, 13, 17, 21, 25, 30]
    with torch.no_grad():
        block.conv1.conv1.weight[doomed] *= 1e-3
        block.conv2.rbr_dense.conv.weight[:, doomed] *= 1e-3
        block.conv2.rbr_1x1.conv.weight[:, doomed] *= 1e-3
        block.conv1.bn1.weight[doomed] *= 1e-3
        block.conv1.bn1.bias.copy_(torch.arange(32))  # names the channels
    after = prune(network, SIZE, OPTIONS).backbone.block_list[2].block_list[0]
    assert after.conv1.bn1.bias.tolist() == [channel for channel in range(32) if channel not in doomed]


def test_the_original_is_left_alone(network: Network) -> None:
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    prune(network, SIZE, OPTIONS)
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
    norm = network.backbone.block_list[0].conv.bn
    norm.running_var[0] = 1e6  # more than 16 bits hold
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, network, DESCRIPTION, torch.float16)
    loaded, _ = load_checkpoint(path)
    assert loaded.backbone.block_list[0].conv.bn.running_var[0] == 1e6
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
