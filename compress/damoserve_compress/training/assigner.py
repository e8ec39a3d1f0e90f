"""AlignOTA: which anchor learns which box (DAMO-YOLO, arXiv 2211.15444, section 2.3; terms as in its released code).

An anchor is a candidate where its point lies in any box, or within `centre_radius` strides of any box's centre.
Every (candidate, box) pair costs the quality focal loss it would have, plus the negative log of its IoU, plus a sum
that rules out, until nothing else is left, the pairs whose point is not both in the box and near its centre.
Each box takes its k cheapest candidates, k being the whole part of the sum of its ten best IoUs, at least one: a box
that many predictions fit already teaches many anchors. An anchor that two boxes take goes to the cheaper one.

An example of two boxes A and B of one class, and four anchors with their points in both boxes and near both centres.
For a class cost of 0.1 everywhere, and the default weight 3 of the IoU, a pair costs 0.1 - 3 ln IoU:

    anchor    IoU A   IoU B    cost A   cost B
    1         0.90    0.30       0.42     3.71
    2         0.80    0.75       0.77     0.96
    3         0.50    0.70       2.18     1.17
    4         0.10    0.20       7.01     4.93
    sum       2.30    1.95    k   2        1

A takes 1 and 2, B takes 2. For anchor 2 box A is cheaper, so A keeps it, and B ends with none: it has no second choice
in this step. The next step sees other predictions.

Nothing here waits for a GPU: no size depends on the values.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from damoserve_compress.training.geometry import pairwise_iou


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AssignerConfig:
    centre_radius: NonNegativeFloat = 2.5
    """The radius around a box's centre, in strides of the anchor's level."""
    candidate_top_k: PositiveInt = 10
    class_weight: NonNegativeFloat = 1.0
    iou_weight: NonNegativeFloat = 3.0
    outside_cost: NonNegativeFloat = 1e8


class Assignment(NamedTuple):
    """The targets that each of one image's A anchors learns."""

    boxes: Tensor
    """[A] int64, index of the box; -1 for background."""
    ious: Tensor
    """[A] float, IoU of the anchor's prediction with that box: the target of its class score. 0 for background."""


class Anchors(NamedTuple):
    """The predictions of one image's A anchors that the assigner reads, without gradient."""

    class_logits: Tensor
    """[A, C]"""
    boxes: Tensor
    """[A, 4] predicted boxes, xyxy in pixels of the network input."""
    points: Tensor
    """[A, 2] x, y in pixels."""
    strides: Tensor
    """[A]"""


def _location(anchors: Anchors, boxes: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Says whether each anchor's point is in each box, and near its centre: two boolean [A, G]."""
    x, y = anchors.points[:, :1], anchors.points[:, 1:]
    inside = (x > boxes[:, 0]) & (y > boxes[:, 1]) & (x < boxes[:, 2]) & (y < boxes[:, 3])
    reach = anchors.strides[:, None] * radius
    centre_x, centre_y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    near = ((x - centre_x).abs() < reach) & ((y - centre_y).abs() < reach)
    return inside, near


def _class_cost(logits: Tensor, labels: Tensor, ious: Tensor) -> Tensor:
    """Quality focal loss [A, G], summed over the C classes, had anchor a [A, C] to learn box g at score iou [A, G].

    All classes but the box's own have target zero, so their sum is shared by all boxes and [A, G, C] never exists.
    """
    background = F.softplus(logits) * logits.sigmoid().square()
    own_logits = logits[:, labels]
    own = (F.softplus(own_logits) - own_logits * ious) * (ious - own_logits.sigmoid()).square()
    return background.sum(1, keepdim=True) - background[:, labels] + own


def _match(cost: Tensor, ious: Tensor, top_k: int) -> Tensor:
    """Boolean [A, G]: each box's dynamic k cheapest anchors of finite cost, each anchor kept by one box at most."""
    depth = min(top_k, len(cost))
    wanted = ious.topk(depth, dim=0).values.sum(0).int().clamp(min=1)
    cheapest = cost.topk(depth, dim=0, largest=False)
    taken = (torch.arange(depth, device=cost.device)[:, None] < wanted) & cheapest.values.isfinite()
    matched = torch.zeros_like(cost, dtype=torch.bool).scatter_(0, cheapest.indices, taken)
    contested = matched.sum(1, keepdim=True) > 1
    winner = F.one_hot(cost.argmin(1), cost.shape[1]).bool()
    return torch.where(contested, winner, matched)


@torch.no_grad()
def assign(anchors: Anchors, boxes: Tensor, labels: Tensor, config: AssignerConfig | None = None) -> Assignment:
    """Match one image's anchors with its boxes [G, 4] (xyxy pixels) and labels [G]; G may be 0.

    A box can end without an anchor: where another box takes its only candidates, or none is near it.
    """
    config = config or AssignerConfig()
    if len(boxes) == 0:
        background = torch.full_like(anchors.strides, -1, dtype=torch.int64)
        return Assignment(background, torch.zeros_like(anchors.strides))
    inside, near = _location(anchors, boxes, config.centre_radius)
    candidate = (inside | near).any(1, keepdim=True)
    ious = pairwise_iou(anchors.boxes, boxes) * candidate
    cost = _class_cost(anchors.class_logits, labels, ious) * config.class_weight
    cost -= torch.log(ious + 1e-7) * config.iou_weight
    # Double precision: at 1e8 a float counts in eights, and the order among ruled-out pairs would be lost.
    cost = (cost.double() + ~(inside & near) * config.outside_cost).masked_fill(~candidate, torch.inf)
    matched = _match(cost, ious, config.candidate_top_k)
    learnt = torch.where(matched.any(1), matched.int().argmax(1), -1)
    return Assignment(learnt, (ious * matched).sum(1))
