"""The losses against their formulas, with and without boxes."""

import pytest
import torch
import torch.nn.functional as F

from damoserve_compress.network import RawPredictions
from damoserve_compress.training.geometry import generalised_iou, pairwise_iou
from damoserve_compress.training.losses import (
    Target,
    detection_loss,
    distribution_focal_loss,
    quality_focal_loss,
)

BINS = 17


def predictions(images: int = 2, size: int = 96, classes: int = 3, seed: int = 0) -> RawPredictions:
    draw = torch.Generator().manual_seed(seed)
    levels = []
    for stride in (8, 16, 32):
        y, x = torch.meshgrid(torch.arange(0, size, stride), torch.arange(0, size, stride), indexing="ij")
        levels.append((torch.stack([x, y], -1).reshape(-1, 2).float(), float(stride)))
    points = torch.cat([level for level, _ in levels])
    strides = torch.cat([torch.full((len(level),), stride) for level, stride in levels])
    logits = torch.randn(images, len(points), classes, generator=draw) - 3
    sides = torch.randn(images, len(points), 4, BINS, generator=draw)
    return RawPredictions(logits.requires_grad_(), sides.requires_grad_(), points, strides)


def target(*boxes: tuple[float, float, float, float]) -> Target:
    return Target(torch.tensor(boxes).reshape(-1, 4), torch.arange(len(boxes)) % 3)


def test_quality_focal_loss_follows_its_formula() -> None:
    logits, targets = torch.tensor([0.5, -2.0, 3.0]), torch.tensor([0.7, 0.0, 1.0])
    p = logits.sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()) * (targets - p) ** 2
    assert quality_focal_loss(logits, targets).item() == pytest.approx(expected.sum().item())


def test_quality_focal_loss_is_least_where_the_score_is_the_target() -> None:
    logits = torch.linspace(-4, 4, 161)
    losses = torch.stack([quality_focal_loss(logit, torch.tensor(0.6)) for logit in logits])
    assert logits[losses.argmin()].sigmoid().item() == pytest.approx(0.6, abs=0.01)


def test_distribution_focal_loss_shares_between_the_two_nearest_bins() -> None:
    logits = torch.randn(1, 4, BINS, generator=torch.Generator().manual_seed(3))
    loss = distribution_focal_loss(logits, torch.tensor([[2.25, 0.0, 15.9, 16.0]]))
    minus_log = -logits.log_softmax(-1)[0]
    assert loss[0, 0].item() == pytest.approx((0.75 * minus_log[0, 2] + 0.25 * minus_log[0, 3]).item())
    assert loss[0, 1].item() == pytest.approx(minus_log[1, 0].item())
    assert loss[0, 2].item() == pytest.approx((0.1 * minus_log[2, 15] + 0.9 * minus_log[2, 16]).item(), rel=1e-4)
    assert loss[0, 3].item() == pytest.approx(minus_log[3, 16].item())


def test_generalised_iou_of_known_boxes() -> None:
    first = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])
    second = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [5, 0, 15, 10]])
    assert generalised_iou(first, second).tolist() == pytest.approx([1, -1 / 3, 1 / 3])
    assert pairwise_iou(first[:1], second)[0].tolist() == pytest.approx([1, 0, 1 / 3])


def test_a_batch_without_boxes_trains_only_the_background() -> None:
    raw = predictions()
    losses = detection_loss(raw, [target(), target()])
    expected = quality_focal_loss(raw.class_logits, torch.zeros_like(raw.class_logits))
    assert losses.total.item() == pytest.approx(expected.item())
    losses.total.backward()  # type: ignore[no-untyped-call]
    assert raw.class_logits.grad is not None
    assert (raw.class_logits.grad > 0).all()
    assert raw.box_logits.grad is not None
    assert not raw.box_logits.grad.any()


def test_box_gradient_reaches_positive_anchors_only() -> None:
    raw = predictions()
    detection_loss(raw, [target((10, 10, 60, 60)), target()]).total.backward()  # type: ignore[no-untyped-call]
    assert raw.box_logits.grad is not None
    touched = raw.box_logits.grad.flatten(2).abs().sum(2) > 0
    assert 0 < int(touched[0].sum()) <= 10
    assert not touched[1].any()


def test_descent_on_the_predictions_finds_the_boxes() -> None:
    raw, wanted = predictions(1), target((10, 14, 42, 50), (48, 30, 90, 80))
    optimiser = torch.optim.Adam([raw.class_logits, raw.box_logits], lr=0.3)
    losses = []
    for _ in range(40):
        loss = detection_loss(raw, [wanted]).total
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    best = raw.class_logits[0].amax(0)[:2].sigmoid()
    assert (best > 0.6).all()


def test_an_image_weighs_the_same_whatever_its_place_in_the_batch() -> None:
    raw, targets = predictions(), [target((10, 10, 60, 60)), target((4, 40, 30, 80), (50, 5, 90, 40))]
    swapped = raw._replace(class_logits=raw.class_logits.flip(0), box_logits=raw.box_logits.flip(0))
    one, other = detection_loss(raw, targets), detection_loss(swapped, targets[::-1])
    assert torch.allclose(torch.stack(list(one)), torch.stack(list(other)))


def test_the_total_is_the_sum_with_the_published_weights() -> None:
    raw = predictions()
    losses = detection_loss(raw, [target((10, 10, 60, 60)), target()])
    assert losses.total.item() == pytest.approx((losses.quality + losses.giou + losses.distribution).item())
    uniform = raw._replace(box_logits=torch.zeros_like(raw.box_logits), class_logits=raw.class_logits + 12)
    # All class probabilities are near 1, so each positive weighs 1 and every side costs log(bins).
    spread = detection_loss(uniform, [target((10, 10, 60, 60)), target()]).distribution
    assert spread.item() == pytest.approx(
        0.25 * F.cross_entropy(torch.zeros(1, BINS), torch.tensor([0])).item(), rel=1e-3
    )


def test_each_image_needs_its_target() -> None:
    with pytest.raises(ValueError, match="1 targets for 2 images"):
        detection_loss(predictions(), [target()])


def test_no_normaliser_is_smaller_than_one() -> None:
    """While hardly any class is believed in, the boxes count for as little."""
    targets = [target((10, 10, 60, 60)), target((4, 40, 30, 80), (50, 5, 90, 40))]

    def losses(logit: float) -> tuple[float, float, int]:
        raw, sides = predictions(), torch.zeros_like(predictions().box_logits).requires_grad_()
        found = detection_loss(
            raw._replace(class_logits=torch.full_like(raw.class_logits, logit), box_logits=sides), targets
        )
        found.total.backward()  # type: ignore[no-untyped-call]
        assert sides.grad is not None
        positives = int((sides.grad.flatten(2).abs().sum(2) > 0).sum())
        return found.giou.item(), found.distribution.item(), positives

    giou, distribution, positives = losses(-12.0)
    believed_giou, believed_distribution, _ = losses(12.0)  # each positive weighs 1: their number divides
    weight = positives * torch.tensor(-12.0).sigmoid().item()
    assert positives >= 3
    assert giou == pytest.approx(weight * believed_giou, rel=1e-4)
    assert distribution == pytest.approx(weight * believed_distribution, rel=1e-4)
