"""The losses of a DAMO-YOLO network: quality focal loss, generalised IoU and distribution focal loss.

Weights and normalisers are those of the released training code; the quality and distribution focal losses are from
Generalized Focal Loss (Li et al. 2020, arXiv 2006.04388).
"""

from collections.abc import Sequence
from dataclasses import field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor

from damoserve_compress.network import RawPredictions
from damoserve_compress.network.head import decode_boxes
from damoserve_compress.training.assigner import Anchors, AssignerConfig, assign
from damoserve_compress.training.geometry import generalised_iou


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LossConfig:
    beta: NonNegativeFloat = 2.0
    class_weight: NonNegativeFloat = 1.0
    giou_weight: NonNegativeFloat = 2.0
    distribution_weight: NonNegativeFloat = 0.25
    assigner: AssignerConfig = field(default_factory=AssignerConfig)


class Target(NamedTuple):
    """The boxes to be found in one image."""

    boxes: Tensor
    """[G, 4] float, xyxy in pixels of the network input; G may be 0."""
    labels: Tensor
    """[G] int64"""


class Losses(NamedTuple):
    """Weighted scalars; `total` is the sum of the others."""

    total: Tensor
    quality: Tensor
    giou: Tensor
    distribution: Tensor
    feature: Tensor
    """The imitation loss: the distance of the features from a teacher's."""


class _Positives(NamedTuple):
    """Positive anchors of a whole batch."""

    images: Tensor
    anchors: Tensor
    boxes: Tensor
    labels: Tensor
    ious: Tensor


def quality_focal_loss(logits: Tensor, targets: Tensor, beta: float = 2.0) -> Tensor:
    """Sum over all elements of BCE(p, t) * |t - p| ** beta, with p the sigmoid of the logits and t in 0..1."""
    distance = (targets - logits.sigmoid()).abs()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (cross_entropy * distance.pow(beta)).sum()


def distribution_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy [P, 4] of bin logits [P, 4, bins] with distances [P, 4] in 0..bins-1, split between two bins."""
    left = targets.floor().long().clamp(max=logits.shape[-1] - 2)
    share = targets - left
    log_probability = logits.log_softmax(-1)
    at_left = log_probability.gather(-1, left[..., None]).squeeze(-1)
    at_right = log_probability.gather(-1, left[..., None] + 1).squeeze(-1)
    return -(at_left * (1 - share) + at_right * share)


def _positives(predictions: RawPredictions, targets: Sequence[Target], config: AssignerConfig) -> _Positives:
    logits = predictions.class_logits.detach()
    decoded = decode_boxes(predictions.box_logits.detach(), predictions.points, predictions.strides)
    matches, first = [], 0
    for index, target in enumerate(targets):
        anchors = Anchors(logits[index], decoded[index], predictions.points, predictions.strides)
        match = assign(anchors, target.boxes, target.labels, config)
        # The boxes of the batch are numbered through.
        matches.append(match._replace(boxes=torch.where(match.boxes < 0, -1, match.boxes + first)))
        first += len(target.boxes)
    learnt, ious = (torch.stack(parts) for parts in zip(*matches, strict=True))
    images, positive = (learnt >= 0).nonzero(as_tuple=True)
    chosen = learnt[images, positive]
    boxes, labels = (torch.cat(parts)[chosen] for parts in zip(*targets, strict=True))
    return _Positives(images, positive, boxes, labels, ious[images, positive])


def _distances(boxes: Tensor, points: Tensor, strides: Tensor, bins: int) -> Tensor:
    """Left, top, right, bottom of boxes [P, 4] from points [P, 2], in strides [P], kept within the bins: [P, 4]."""
    sides = torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], 1) / strides[:, None]
    return sides.clamp(0, bins - 1 - 0.1)


def detection_loss(predictions: RawPredictions, targets: Sequence[Target], config: LossConfig | None = None) -> Losses:
    """Loss of one batch: `targets` holds one entry an image, in the order of the predictions.

    The quality focal loss is divided by the number of positive anchors. The two box losses weigh each positive by
    its best class probability and are divided by the sum of these weights (the distribution loss by 4 times it,
    having four sides). No normaliser is smaller than 1. Raises ValueError where the lengths differ.
    """
    config = config or LossConfig()
    logits, box_logits = predictions.class_logits, predictions.box_logits
    if len(targets) != len(logits):
        raise ValueError(f"{len(targets)} targets for {len(logits)} images")
    positives = _positives(predictions, targets, config.assigner)
    where = positives.images, positives.anchors
    count = max(len(positives.images), 1)
    quality_targets = torch.zeros_like(logits)
    quality_targets[(*where, positives.labels)] = positives.ious.to(logits.dtype)
    quality = quality_focal_loss(logits, quality_targets, config.beta) / count * config.class_weight
    if len(positives.images) == 0:
        # A zero that depends on the regression logits: their parameters get a gradient, of zero, in every step.
        nothing = box_logits.sum() * 0
        return Losses(quality + nothing, quality, nothing, nothing, nothing)
    weights = logits.detach()[where].sigmoid().amax(1)
    normaliser = weights.sum().clamp(min=1)
    chosen, points, strides = box_logits[where], predictions.points[where[1]], predictions.strides[where[1]]
    overlap = generalised_iou(decode_boxes(chosen, points, strides), positives.boxes)
    giou = ((1 - overlap) * weights).sum() / normaliser * config.giou_weight
    sides = _distances(positives.boxes, points, strides, chosen.shape[-1])
    spread = distribution_focal_loss(chosen, sides) * weights[:, None]
    distribution = spread.sum() / (4 * normaliser) * config.distribution_weight
    return Losses(quality + giou + distribution, quality, giou, distribution, torch.zeros_like(quality))
