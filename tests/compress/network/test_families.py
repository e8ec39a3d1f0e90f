"""The variants against the reference's figures, and what must hold for a network of any family.

golden/ holds keys, shapes and outputs of the reference implementation with the weights that `golden_value` makes from
the key names. Counts of parameters and operations of the other variants come from the published configurations.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from damoserve_compress.export import check_batches, check_parity, export_onnx
from damoserve_compress.measure.runtime import onnx_detector
from damoserve_compress.network import VARIANTS, Network, RawPredictions, Structure, build_network, fuse
from damoserve_compress.network.blocks import RepConv
from damoserve_compress.network.checkpoint import Description, load_checkpoint, save_checkpoint
from damoserve_compress.network.reparameterise import reparameterise
from damoserve_compress.prune import cut, find_groups, kept_channels, uniform
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import Export
from tests.support.compress.families import CSP, FAMILIES, MOBILE, RES, fill, images, parameter_count

GOLDEN = Path(__file__).parent / "golden"

# Variant: parameters for training and deployed, tensors of a checkpoint, RepConvs, and GFLOPs (two for each
# multiplication with addition, convolutions alone, deployed) at the variant's size.
FIGURES = {
    "T": (8_875_727, 8_479_631, 586, 24, 18.01),
    "S": (16_935_647, 16_251_631, 640, 27, 37.62),
    "M": (29_241_727, 28_178_175, 844, 33, 61.62),
    "L": (43_861_759, 42_058_111, 1114, 48, 97.12),
    "Ns": (1_405_691, 1_405_691, 526, 0, 1.50),
    "Nm": (2_707_219, 2_707_219, 526, 0, 3.58),
    "Nl": (5_688_579, 5_688_579, 544, 0, 5.91),
    "P": (2_386_687, 2_284_383, 586, 24, 2.27),
}

each_family = pytest.mark.parametrize("structure", FAMILIES, ids=lambda structure: structure.family)
each_golden = pytest.mark.parametrize("variant", ["T", "M", "Ns"])


@cache
def golden(variant: str) -> Network:
    return fill(build_network(variant))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@each_golden
def test_keys_shapes_and_order_are_those_of_published_checkpoints(variant: str) -> None:
    expected = [(key, tuple(shape)) for key, shape in json.loads((GOLDEN / f"{variant}.keys.json").read_text())]
    assert [(key, tuple(value.shape)) for key, value in golden(variant).state_dict().items()] == expected


def test_a_cross_stage_part_without_blocks_is_its_downsampling() -> None:
    pooled = replace(CSP, stages=(*CSP.stages[:-1], replace(CSP.stages[-1], depth=1)))
    parts = build_network(pooled, num_classes=3).backbone.parts
    assert {name for name, _ in parts[1].named_parameters(recurse=True)} == {
        f"downsampler.conv.{name}" for name in ("conv1.weight", "bn1.weight", "bn1.bias")
    }
    assert {name.split(".")[0] for name in parts[-1].state_dict()} == {"downsampler", "spp"}
    features = fill(build_network(pooled, num_classes=3)).backbone(images(1))
    assert [feature.shape[1] for feature in features] == [32, 48, 64]


@each_golden
@pytest.mark.parametrize("form", [copy.deepcopy, reparameterise, fuse])
def test_outputs_equal_the_reference(variant: str, form: Callable[[Network], Network]) -> None:
    network = form(golden(variant))
    with np.load(GOLDEN / f"{variant}.npz") as expected, torch.no_grad():
        scores, boxes = network(images(1, 256, 320))
        assert scores.shape == (1, expected["total_anchors"], 80)
        assert boxes.shape == (1, expected["total_anchors"], 4)
        np.testing.assert_allclose(scores[0, expected["index"]], expected["scores"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(boxes[0, expected["index"]], expected["boxes"], rtol=0, atol=1e-2)


@each_golden
def test_features_equal_the_reference(variant: str) -> None:
    network = golden(variant)
    with np.load(GOLDEN / f"{variant}.npz") as expected, torch.no_grad():
        inputs = images(1, 256, 320)
        features = [*network.backbone(inputs), *network.features(inputs)]
        means, stds = [float(f.mean()) for f in features], [float(f.std()) for f in features]
        np.testing.assert_allclose(means, expected["feature_means"], rtol=1e-4)
        np.testing.assert_allclose(stds, expected["feature_stds"], rtol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sizes_are_the_published_ones(variant: str) -> None:
    training, deployed, tensors, repconvs, gflops = FIGURES[variant]
    side = VARIANTS[variant].input_size
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = build_network(variant).eval()
        assert parameter_count(network) == training
        assert len(network.state_dict()) == tensors
        assert sum(isinstance(module, RepConv) for module in network.modules()) == repconvs
        deploy_form = reparameterise(network)
        assert parameter_count(deploy_form) == deployed
        deploy_form(torch.empty(1, 3, side, side))
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflops, rel=0.01)


def test_evaluation_settings_are_the_published_ones() -> None:
    found = {(s.input_size, s.score_threshold, s.nms_iou): name[0] for name, s in VARIANTS.items() if name != "P"}
    assert set(found) == {(640, 0.05, 0.7), (416, 0.03, 0.65)}
    assert VARIANTS["P"].input_size == 416


@pytest.mark.parametrize(
    "structure",
    [
        *FAMILIES,
        replace(RES, bottleneck_kernel=3, activation="silu", head_kernel=1),
        replace(MOBILE, activation="relu"),
    ],
)
def test_fusing_leaves_no_batch_norm_and_the_same_function(structure: Structure) -> None:
    network = fill(build_network(structure, num_classes=3)).double()  # in which folding is exact but for 1e-16
    fused = fuse(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert all(module.rbr_reparam is not None for module in fused.modules() if isinstance(module, RepConv))
    assert not fused.training
    with torch.no_grad():
        for ours, theirs in zip(fused(images(2).double()), network(images(2).double()), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@each_family
def test_gradients_reach_every_parameter(structure: Structure) -> None:
    network = build_network(structure, num_classes=3).train()
    raw = network(images(2))
    assert isinstance(raw, RawPredictions)
    loss = (raw.class_logits * torch.randn_like(raw.class_logits)).sum()
    (loss + (raw.box_logits * torch.randn_like(raw.box_logits)).sum()).backward()  # type: ignore[no-untyped-call]
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@each_family
def test_a_batch_equals_its_images_one_by_one(structure: Structure) -> None:
    network, batch = fill(build_network(structure, num_classes=3)), images(3)
    with torch.no_grad():
        together = network(batch)
        singles = [network(image[None]) for image in batch]
    for joint, single in zip(together, zip(*singles, strict=True), strict=True):
        torch.testing.assert_close(joint, torch.cat(single), rtol=1e-4, atol=1e-3)


@each_family
def test_fresh_activations_neither_vanish_nor_explode(structure: Structure) -> None:
    network = build_network(structure, num_classes=3).train()  # batch norms of a fresh network only work in training
    with torch.no_grad():
        spreads = [float(feature.std()) for feature in network.features(images(4))]
    assert all(0.1 < spread < 10 for spread in spreads)


def test_depthwise_filters_start_as_wide_as_their_input_is_small() -> None:
    network = build_network(VARIANTS["Nl"], num_classes=3)
    depthwise = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    for conv in depthwise:
        expected = (2 / (conv.kernel_size[0] * conv.kernel_size[1])) ** 0.5
        assert float(conv.weight.detach().std()) == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("stem", ["convolution", "space_to_depth"])
@pytest.mark.parametrize("structure", [CSP, MOBILE], ids=lambda structure: structure.family)
def test_exported_graphs_equal_the_network(
    structure: Structure, stem: str, size: Size, pictures: NDArray[np.uint8], tmp_path: Path
) -> None:
    network = fill(build_network(structure, num_classes=3))
    options = Export.model_validate({"candidates": 40, "stem": stem})
    export_onnx(network, size, options, tmp_path / "model.onnx")
    detector = onnx_detector(tmp_path / "model.onnx")
    check_parity(detector, network, pictures[:2])
    check_batches(detector, pictures[:2])


@each_family
def test_pruned_networks_are_narrower_and_work(structure: Structure, tmp_path: Path) -> None:
    network = fill(build_network(structure, num_classes=3))
    groups = find_groups(network, "l1")
    pruned = cut(network, groups, uniform(groups, 0.3, 8)).eval()
    before = dict(network.named_modules())
    for name, conv in pruned.named_modules():
        if isinstance(conv, nn.Conv2d):
            original = before[name]
            assert isinstance(original, nn.Conv2d)
            kept = original.out_channels if "head" in name else kept_channels(original.out_channels, 0.3, 8)
            assert conv.out_channels == kept, name
            assert conv.groups in (1, conv.out_channels), name
    with torch.no_grad():
        for ours, theirs in zip(fuse(pruned)(images(2)), pruned(images(2)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=5e-2)
    path = tmp_path / "pruned.safetensors"
    save_checkpoint(path, pruned, Description("m", structure.name, ("a", "b", "c"), 64, 64))
    loaded, _ = load_checkpoint(path)  # no variant has this structure: the file itself tells it
    with torch.no_grad():
        for ours, theirs in zip(loaded(images(2)), pruned(images(2)), strict=True):
            torch.testing.assert_close(ours, theirs)
