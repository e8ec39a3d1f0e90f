"""The network against the reference's golden figures, and the invariants that training and export rely on.

golden/T.keys.json and golden/T.npz hold keys, shapes and outputs of the reference implementation with the weights
that `golden_value` makes from the key names.
"""

from __future__ import annotations

import copy
import json
import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from damoserve_compress.network import (
    VARIANTS,
    Network,
    RawPredictions,
    Structure,
    StructureError,
    build_network,
    fuse,
)
from damoserve_compress.network.blocks import RepConv, SPPBottleneck
from damoserve_compress.network.head import decode_boxes, make_priors
from damoserve_compress.network.reparameterise import reparameterise
from damoserve_compress.network.structures import NeckStructure, StageStructure

GOLDEN = Path(__file__).parent / "golden"

TINY = Structure(
    name="tiny",
    stem_channels=8,
    stages=(
        StageStructure(8, 8, bottleneck=8, depth=1),
        StageStructure(8, 16, bottleneck=8, depth=2),
        StageStructure(16, 16, bottleneck=8, depth=1),
        StageStructure(16, 24, bottleneck=8, depth=1, stride=1),  # widens without a stride: a projected skip
        StageStructure(24, 32, bottleneck=16, depth=2),
    ),
    neck=NeckStructure(out_channels=(8, 16, 24), blocks=2, hidden_ratio=0.5),
)


def golden_keys() -> list[tuple[str, tuple[int, ...]]]:
    return [(key, tuple(shape)) for key, shape in json.loads((GOLDEN / "T.keys.json").read_text())]


def golden_value(key: str, shape: tuple[int, ...]) -> Tensor:
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    value: NDArray[np.generic] | float
    if key.endswith("integral.project"):
        value = np.arange(shape[0])
    elif key.endswith(".scale"):
        value = rng.uniform(0.8, 1.2)
    elif key.endswith("running_var"):
        value = rng.uniform(0.5, 1.5, shape)
    elif key.endswith(("running_mean", ".bias")):
        value = rng.normal(0, 0.1, shape)
    elif len(shape) == 1:
        value = rng.uniform(0.5, 1.0, shape)
    else:
        value = rng.normal(0, 1, shape) * np.sqrt(1 / np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def fill(network: Network) -> Network:
    """Golden weights: unlike fresh ones they give every BatchNorm something to do."""
    state = {key: golden_value(key, tuple(value.shape)) for key, value in network.state_dict().items()}
    network.load_state_dict(state)
    return network.eval()


def images(count: int, height: int = 64, width: int = 96, seed: int = 7) -> Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, height, width))
    return torch.from_numpy(pixels.astype(np.float32))


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture(scope="module", autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def golden() -> Network:
    return fill(build_network("T"))


@pytest.fixture
def tiny() -> Network:
    return fill(build_network(TINY, num_classes=3))


def test_keys_shapes_and_order_are_those_of_published_checkpoints(golden: Network) -> None:
    assert [(key, tuple(value.shape)) for key, value in golden.state_dict().items()] == golden_keys()


@pytest.mark.parametrize("form", [copy.deepcopy, reparameterise, fuse])
def test_outputs_equal_the_reference(golden: Network, form: Callable[[Network], Network]) -> None:
    network = form(golden)
    with np.load(GOLDEN / "T.npz") as expected, torch.no_grad():
        scores, boxes = network(images(1, 256, 320))
        assert scores.shape == (1, expected["total_anchors"], 80)
        assert boxes.shape == (1, expected["total_anchors"], 4)
        np.testing.assert_allclose(scores[0, expected["index"]], expected["scores"], rtol=0, atol=1e-4)
        np.testing.assert_allclose(boxes[0, expected["index"]], expected["boxes"], rtol=0, atol=1e-2)


def test_features_equal_the_reference(golden: Network) -> None:
    with np.load(GOLDEN / "T.npz") as expected, torch.no_grad():
        inputs = images(1, 256, 320)
        features = [*golden.backbone(inputs), *golden.features(inputs)]
        means, stds = [float(f.mean()) for f in features], [float(f.std()) for f in features]
        np.testing.assert_allclose(means, expected["feature_means"], rtol=1e-4)
        np.testing.assert_allclose(stds, expected["feature_stds"], rtol=1e-3)


def test_parameter_counts(golden: Network) -> None:
    assert parameter_count(golden) == 8_875_727
    assert parameter_count(reparameterise(golden)) == 8_479_631
    assert parameter_count(build_network("P", num_classes=3)) == 2_231_224


def test_pooling_windows_are_5_9_and_13() -> None:
    pooling = SPPBottleneck(8, 8).eval()
    x = torch.randn(2, 8, 16, 17)
    y = pooling.conv1(x)
    windows = [nn.functional.max_pool2d(y, size, 1, size // 2) for size in (5, 9, 13)]
    torch.testing.assert_close(pooling(x), pooling.conv2(torch.cat([y, *windows], dim=1)))


def test_raw_predictions_agree_with_the_decoded_ones(tiny: Network) -> None:
    with torch.no_grad():
        raw = tiny.raw(images(2))
        scores, boxes = tiny(images(2))
    anchors = 8 * 12 + 4 * 6 + 2 * 3
    assert raw.class_logits.shape == (2, anchors, 3)
    assert raw.box_logits.shape == (2, anchors, 4, tiny.reg_max + 1)
    assert raw.points.shape == (anchors, 2)
    assert raw.strides.shape == (anchors,)
    torch.testing.assert_close(scores, raw.class_logits.sigmoid())
    torch.testing.assert_close(boxes, decode_boxes(raw.box_logits, raw.points, raw.strides))


def test_training_mode_answers_raw_predictions() -> None:
    network = build_network(TINY, num_classes=3)
    assert isinstance(network(images(2)), RawPredictions)
    assert network.variant == "tiny"
    assert network.strides == (8, 16, 32)


def test_points_are_grid_corners_row_by_row() -> None:
    points, strides = make_priors([torch.empty(1, 1, 4, 8), torch.empty(1, 1, 2, 4), torch.empty(1, 1, 1, 2)])
    assert points[:9].tolist() == [[8.0 * x, 0.0] for x in range(8)] + [[0.0, 8.0]]
    assert points[-2:].tolist() == [[0.0, 0.0], [32.0, 0.0]]
    assert strides.tolist() == [8.0] * 32 + [16.0] * 8 + [32.0] * 2


@given(sides=st.lists(st.integers(0, 16), min_size=4, max_size=4), corner=st.tuples(*[st.integers(0, 99)] * 2))
@settings(max_examples=30, deadline=None)
def test_certain_distributions_decode_to_their_bin(sides: list[int], corner: tuple[int, int]) -> None:
    logits = torch.full((1, 4, 17), -1e4)
    logits[0, torch.arange(4), torch.tensor(sides)] = 0.0
    box = decode_boxes(logits, torch.tensor([corner], dtype=torch.float32), torch.tensor([16.0]))[0]
    (x, y), (left, top, right, bottom) = corner, [16.0 * side for side in sides]
    assert box.tolist() == pytest.approx([x - left, y - top, x + right, y + bottom])


def test_points_and_strides_may_be_gathered_per_image() -> None:
    raw = build_network(TINY, num_classes=3).raw(images(2))
    chosen = torch.tensor([[0, 5, 90], [3, 1, 125]])
    gathered = torch.stack([logits[rows] for logits, rows in zip(raw.box_logits, chosen, strict=True)])
    boxes = decode_boxes(raw.box_logits, raw.points, raw.strides)
    expected = torch.stack([rows[index] for rows, index in zip(boxes, chosen, strict=True)])
    torch.testing.assert_close(decode_boxes(gathered, raw.points[chosen], raw.strides[chosen]), expected)


def test_half_precision_logits_decode_in_float32() -> None:
    logits, points, strides = torch.randn(5, 4, 17), torch.rand(5, 2) * 640, torch.full((5,), 32.0)
    boxes = decode_boxes(logits.half(), points, strides)
    assert boxes.dtype == torch.float32
    torch.testing.assert_close(boxes, decode_boxes(logits, points, strides), rtol=0, atol=0.5)


def test_a_batch_equals_its_images_one_by_one(tiny: Network) -> None:
    batch = images(3)
    with torch.no_grad():
        together = tiny(batch)
        singles = [tiny(image[None]) for image in batch]
    for joint, single in zip(together, zip(*singles, strict=True), strict=True):
        torch.testing.assert_close(joint, torch.cat(single), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("structure", ["P", TINY, replace(TINY, bottleneck_kernel=3, activation="silu", head_kernel=1)])
def test_fusing_leaves_no_batch_norm_and_the_same_function(structure: str | Structure) -> None:
    network = fill(build_network(structure, num_classes=3))
    fused = fuse(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert all(module.rbr_reparam is not None for module in fused.modules() if isinstance(module, RepConv))
    assert not fused.training
    with torch.no_grad():
        for ours, theirs in zip(fused(images(2)), network(images(2)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-2)


def test_fusing_leaves_its_input_untouched(tiny: Network) -> None:
    before = copy.deepcopy(tiny.state_dict())
    tiny.train()
    fuse(tiny)
    after = tiny.state_dict()
    assert tiny.training
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_fusing_twice_changes_nothing(tiny: Network) -> None:
    once = fuse(tiny).state_dict()
    twice = fuse(fuse(tiny)).state_dict()
    assert list(once) == list(twice)
    assert all(torch.equal(once[key], twice[key]) for key in once)


def test_a_fused_network_still_gives_raw_predictions(tiny: Network) -> None:
    with torch.no_grad():
        torch.testing.assert_close(fuse(tiny).raw(images(1)), tiny.raw(images(1)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("structure", ["P", TINY])
def test_gradients_reach_every_parameter(structure: str | Structure) -> None:
    network = build_network(structure, num_classes=3).train()
    raw = network(images(2))
    assert isinstance(raw, RawPredictions)
    loss = (raw.class_logits * torch.randn_like(raw.class_logits)).sum()
    (loss + (raw.box_logits * torch.randn_like(raw.box_logits)).sum()).backward()  # type: ignore[no-untyped-call]
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_fresh_networks_score_every_class_at_one_percent() -> None:
    head = build_network(TINY, num_classes=3).head
    for conv in head.gfl_cls:
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        assert conv.bias.sigmoid().tolist() == pytest.approx([0.01] * 3)
        assert float(conv.weight.detach().std()) == pytest.approx(0.01, rel=0.3)


def test_batch_norm_constants() -> None:
    norms = [module for module in build_network("P").modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}


def test_channels_last_survives_fusing(tiny: Network) -> None:
    fused = fuse(tiny.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    weights = [p for p in fused.parameters() if p.dim() == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_export_keeps_the_batch_dynamic(tiny: Network) -> None:
    fused = fuse(tiny)
    exported = torch.export.export(fused, (images(2),), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
    program = exported.module()
    for count in (1, 5):
        with torch.no_grad():
            torch.testing.assert_close(program(images(count)), fused(images(count)))


def test_a_users_structure_is_built_as_written(tiny: Network) -> None:
    with torch.no_grad():
        assert [f.shape[1] for f in tiny.backbone(images(1))] == [16, 24, 32]
        assert [tuple(f.shape[1:]) for f in tiny.features(images(1))] == [(8, 8, 12), (16, 4, 6), (24, 2, 3)]
        assert math.prod(tiny(images(1))[0].shape) == 126 * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stem_channels": 9}, "stage 1 takes 8 channels, gets 9"),
        ({"stages": TINY.stages[:4]}, "strides"),
        ({"stages": (*TINY.stages, StageStructure(32, 32, bottleneck=8, depth=1))}, "strides"),
        ({"stages": (replace(TINY.stages[0], stride=3), *TINY.stages[1:])}, "stride 1 or 2"),
    ],
)
def test_structures_that_do_not_fit_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(StructureError, match=message):
        replace(TINY, **change)  # type: ignore[arg-type]


def test_unknown_names_are_refused() -> None:
    assert set(VARIANTS) == {"T", "P"}
    with pytest.raises(StructureError, match="unknown variant 'X', known: T, P"):
        build_network("X")
    with pytest.raises(StructureError, match="unknown family"):
        build_network(replace(TINY, family="transformer"))


def test_sizes_that_are_no_multiple_of_32_are_refused(tiny: Network) -> None:
    with pytest.raises(ValueError, match="multiples of 32, got 64x80"):
        tiny(images(1, 64, 80))
