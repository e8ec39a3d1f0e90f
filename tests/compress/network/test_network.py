"""The invariants of a network that training and export rely on."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from damoserve_compress.network import Network, RawPredictions, build_network, fuse
from damoserve_compress.network.blocks import SPPBottleneck, same_conv
from damoserve_compress.network.head import decode_boxes, make_priors
from tests.support.compress.families import RES, fill, images


@pytest.fixture(scope="module", autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> Network:
    return fill(build_network(RES, num_classes=3))


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
    network = build_network(RES, num_classes=3)
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
    raw = build_network(RES, num_classes=3).raw(images(2))
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


def test_fresh_networks_score_every_class_at_one_percent() -> None:
    head = build_network(RES, num_classes=3).head
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


def test_sizes_that_are_no_multiple_of_32_are_refused(tiny: Network) -> None:
    with pytest.raises(ValueError, match="multiples of 32, got 64x80"):
        tiny(images(1, 64, 80))


@pytest.mark.parametrize("channels", [3, 8, 24])
def test_a_strided_pointwise_convolution_is_one_in_value_and_gradient(channels: int) -> None:
    ours = same_conv(channels, 16, kernel=1, stride=2)
    plain = nn.Conv2d(channels, 16, 1, stride=2, bias=False)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, channels, 9, 12)
    torch.testing.assert_close(ours(x), plain(x))
    for conv in (ours, plain):
        conv(x.contiguous()).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad)
