"""Overlap of axis-aligned boxes given as (x1, y1, x2, y2)."""

import torch
from torch import Tensor


def box_area(boxes: Tensor) -> Tensor:
    """Areas [...] of boxes [..., 4]; a box turned inside out counts as empty."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def _intersection(first: Tensor, second: Tensor) -> Tensor:
    top_left = torch.maximum(first[..., :2], second[..., :2])
    bottom_right = torch.minimum(first[..., 2:], second[..., 2:])
    return (bottom_right - top_left).clamp(min=0).prod(-1)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every box of [V, 4] with every box of [G, 4]: [V, G] in 0..1."""
    shared = _intersection(first[:, None], second[None])
    union = box_area(first)[:, None] + box_area(second)[None] - shared
    return shared / union.clamp(min=1e-6)


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019) of paired boxes [P, 4]: [P] in -1..1.

    Unlike plain IoU it has a gradient where the boxes do not touch.
    """
    shared = _intersection(first, second)
    union = (box_area(first) + box_area(second) - shared).clamp(min=1e-6)
    hull_size = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    hull = hull_size.clamp(min=0).prod(-1).clamp(min=1e-6)
    return shared / union - (hull - union) / hull
