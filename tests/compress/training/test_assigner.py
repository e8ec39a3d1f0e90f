"""AlignOTA against a plain loop over pairs, and what must hold whatever the predictions are."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from damoserve_compress.training.assigner import Anchors, AssignerConfig, Assignment, assign

CONFIG = AssignerConfig()


def grid(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    points, strides = [], []
    for stride in (8, 16, 32):
        y, x = torch.meshgrid(torch.arange(0, size, stride), torch.arange(0, size, stride), indexing="ij")
        points.append(torch.stack([x, y], -1).reshape(-1, 2).float())
        strides.append(torch.full((len(points[-1]),), float(stride)))
    return torch.cat(points), torch.cat(strides)


def scene(seed: int, count: int, classes: int = 3, size: int = 96) -> tuple[Anchors, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    points, strides = grid(size)
    centres = torch.rand(count, 2, generator=draw) * size
    half = torch.rand(count, 2, generator=draw) * 24 + 3
    boxes = torch.cat([centres - half, centres + half], 1).clamp(0, size)
    labels = torch.randint(classes, (count,), generator=draw)
    reach = torch.rand(len(points), 4, generator=draw) * strides[:, None] * 3
    predicted = torch.cat([points - reach[:, :2], points + reach[:, 2:]], 1)
    logits = torch.randn(len(points), classes, generator=draw) * 2 - 2
    return Anchors(logits, predicted, points, strides), boxes, labels


def overlap(a: list[float], b: list[float]) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (area - width * height)


def pair_cost(logits: list[float], label: int, iou: float, allowed: bool) -> float:
    cost = 0.0 if allowed else CONFIG.outside_cost
    for index, logit in enumerate(logits):
        p, target = 1 / (1 + math.exp(-logit)), iou if index == label else 0.0
        cost += -(target * math.log(p) + (1 - target) * math.log(1 - p)) * (target - p) ** 2
    return cost - 3 * math.log(iou + 1e-7)


def assign_by_loops(anchors: Anchors, boxes: torch.Tensor, labels: torch.Tensor) -> dict[int, int]:
    costs: dict[int, list[float]] = {}
    ious: dict[int, list[float]] = {}
    for index, ((x, y), stride) in enumerate(zip(anchors.points.tolist(), anchors.strides.tolist(), strict=True)):
        inside = [left < x < right and top < y < bottom for left, top, right, bottom in boxes.tolist()]
        near = [
            abs(x - (left + right) / 2) < 2.5 * stride and abs(y - (top + bottom) / 2) < 2.5 * stride
            for left, top, right, bottom in boxes.tolist()
        ]
        if not any(inside) and not any(near):
            continue
        ious[index] = [overlap(anchors.boxes[index].tolist(), box) for box in boxes.tolist()]
        costs[index] = [
            pair_cost(anchors.class_logits[index].tolist(), int(labels[g]), ious[index][g], inside[g] and near[g])
            for g in range(len(boxes))
        ]
    claims: dict[int, list[int]] = {}
    for g in range(len(boxes)):
        wanted = max(int(sum(sorted((row[g] for row in ious.values()), reverse=True)[:10])), 1)
        for index in sorted(costs, key=lambda i: costs[i][g])[:wanted]:
            claims.setdefault(index, []).append(g)
    everyone = range(len(boxes))
    return {i: c[0] if len(c) == 1 else min(everyone, key=lambda g: costs[i][g]) for i, c in claims.items()}


def learnt(match: Assignment) -> dict[int, int]:
    return {anchor: box for anchor, box in enumerate(match.boxes.tolist()) if box >= 0}


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_a_loop_over_pairs(seed: int) -> None:
    anchors, boxes, labels = scene(seed, count=1 + seed * 2)
    match = assign(anchors, boxes, labels)
    assert learnt(match) == assign_by_loops(anchors, boxes, labels)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 25), classes=st.integers(1, 5))
def test_the_score_that_an_anchor_learns_is_the_iou(seed: int, count: int, classes: int) -> None:
    anchors, boxes, labels = scene(seed, count, classes)
    match = assign(anchors, boxes, labels)
    assert learnt(match)
    for box, iou, predicted in zip(match.boxes.tolist(), match.ious.tolist(), anchors.boxes.tolist(), strict=True):
        assert iou == (pytest.approx(overlap(predicted, boxes[box].tolist()), abs=1e-5) if box >= 0 else 0)


def test_a_box_too_small_to_contain_a_point_still_gets_an_anchor() -> None:
    anchors, _, _ = scene(0, 1)
    match = assign(anchors, torch.tensor([[42.0, 42.0, 45.0, 45.0]]), torch.tensor([0]))
    (anchor,) = learnt(match)
    assert (anchors.points[anchor] - 43.5).abs().max() < 2.5 * anchors.strides[anchor]


def test_perfect_predictions_are_preferred_and_k_follows_their_number() -> None:
    anchors, boxes, labels = scene(1, 1)
    boxes = torch.tensor([[20.0, 20.0, 70.0, 70.0]])
    perfect = ((anchors.points > 28) & (anchors.points < 52)).all(1) & (anchors.strides == 8)
    predicted = anchors.boxes.clone() * 0
    predicted[perfect] = boxes[0]
    match = assign(anchors._replace(boxes=predicted), boxes, labels)
    assert len(learnt(match)) == min(int(perfect.sum()), 10)
    assert perfect[match.boxes >= 0].all()


@pytest.mark.parametrize("boxes", [torch.zeros(0, 4), torch.tensor([[5000.0, 5000.0, 5010.0, 5010.0]])])
def test_nothing_to_learn_gives_no_positives(boxes: torch.Tensor) -> None:
    anchors, _, _ = scene(0, 1)
    match = assign(anchors, boxes, torch.zeros(len(boxes), dtype=torch.int64))
    assert not learnt(match)
    assert not match.ious.any()
