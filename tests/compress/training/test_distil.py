"""A student learns a teacher's features: the losses by their definition, and whole runs."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from damoserve_compress.network import Network, build_network
from damoserve_compress.network.checkpoint import Description, save_checkpoint
from damoserve_compress.training.checkpoint import ResumeMismatch, UnusableWeights
from damoserve_compress.training.distil import (
    DistilConfig,
    DistillationObjective,
    channel_wise_loss,
    normalise,
)
from damoserve_compress.training.objective import ForwardPass
from damoserve_compress.training.start import load_teacher
from damoserve_compress.training.trainer import Trainer
from tests.support.compress.toy_training import CONFIG, TINY, Squares, tiny_network


def features(seed: int) -> Tensor:
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))


def test_channel_wise_loss_is_the_divergence_of_the_channels_distributions() -> None:
    student, teacher = features(1), features(2)
    wanted = 0.0
    for image in range(2):
        for channel in range(3):
            p = np.exp(teacher[image, channel].double().numpy() / 2)
            q = np.exp(student[image, channel].double().numpy() / 2)
            p, q = p / p.sum(), q / q.sum()
            wanted += (p * np.log(p / q)).sum()
    assert float(channel_wise_loss(student, teacher, temperature=2)) == pytest.approx(wanted * 4 / 6, rel=1e-4)
    assert float(channel_wise_loss(teacher, teacher)) == pytest.approx(0, abs=1e-6)


def test_normalised_channels_have_no_scale_left() -> None:
    normal = normalise(features(1) * torch.tensor([1.0, 50, 0.1]).view(1, 3, 1, 1) + 7)
    assert torch.allclose(normal.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(normal.var((0, 2, 3), unbiased=False), torch.ones(3), atol=1e-2)
    assert torch.allclose(normal, normalise(features(1)), atol=1e-2)


def test_the_weight_falls_along_a_cosine() -> None:
    config = DistilConfig(first_weight=1.0, last_weight=0.1)
    assert [config.weight(progress) for progress in (0, 0.5, 1)] == pytest.approx([1, 0.55, 0.1])


def teacher_and_student() -> tuple[Network, Network]:
    """The teacher has wider neck outputs than the student."""
    wide = replace(TINY, name="wide", neck=replace(TINY.neck, out_channels=(24, 32, 16)))
    torch.manual_seed(5)
    return build_network(wide, 2), tiny_network()


def distilling_trainer(out: Path, method: DistilConfig, seed: int = 3) -> Trainer:
    teacher, student = teacher_and_student()
    config = replace(CONFIG, distil=method, seed=seed)
    torch.manual_seed(seed)
    objective = DistillationObjective(student, teacher, method, config.loss)
    return Trainer(student, config, (Squares(8), Squares(4, first=100)), out, objective)


@pytest.mark.parametrize("method", ["cwd", "mimic"])
def test_features_come_closer_to_the_teachers(tmp_path: Path, method: Literal["cwd", "mimic"]) -> None:
    trainer = distilling_trainer(tmp_path, DistilConfig(method=method))
    batch = next(iter(trainer.batches.epoch(0)))
    losses = [float(trainer.train_step(batch).feature) for _ in range(30)]
    assert 0 < losses[-1] < 0.8 * losses[0]


def test_the_weight_is_applied_to_the_feature_loss(tmp_path: Path) -> None:
    trainer = distilling_trainer(tmp_path, DistilConfig(first_weight=1, last_weight=0.1))
    teacher = trainer.objective
    images, targets = next(iter(trainer.batches.epoch(0))).tensors()
    features = trainer.network.features(images)
    predictions = trainer.network.head(features)
    first, last = (
        teacher(ForwardPass(images, features, predictions, targets, progress, nullcontext)).feature.detach()
        for progress in (0.0, 1.0)
    )
    assert float(last) == pytest.approx(0.1 * float(first), rel=1e-4)


def test_the_feature_loss_is_part_of_the_total_and_in_the_log(tmp_path: Path) -> None:
    result = distilling_trainer(tmp_path, DistilConfig()).run()
    for record in result.history:
        parts = record.quality + record.giou + record.distribution + record.feature
        assert record.loss == pytest.approx(parts, rel=1e-5)
    assert json.loads((tmp_path / "training.json").read_text())["config"]["distil"]["method"] == "cwd"


def test_only_student_and_alignment_learn(tmp_path: Path) -> None:
    trainer = distilling_trainer(tmp_path, DistilConfig())
    assert isinstance(trainer.objective, DistillationObjective)
    teacher = trainer.objective.teacher
    before = [tensor.clone() for tensor in teacher.state_dict().values()]
    aligned = [tensor.clone() for tensor in trainer.objective.parameters()]
    trainer.run()
    assert all(torch.equal(old, new) for old, new in zip(before, teacher.state_dict().values(), strict=True))
    assert not any(torch.equal(old, new) for old, new in zip(aligned, trainer.objective.parameters(), strict=True))
    assert {name.split(".")[0] for name in trainer.objective.state_dict()} == {"align"}


def test_a_resumed_distillation_gives_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = distilling_trainer(tmp_path / "whole", DistilConfig()).run()
    distilling_trainer(tmp_path / "parts", DistilConfig()).run(epochs=1)
    resumed = distilling_trainer(tmp_path / "parts", DistilConfig()).run()
    assert [record.loss for record in whole.history] == [record.loss for record in resumed.history]
    other = DistilConfig(teacher="another")
    with pytest.raises(ResumeMismatch, match="distil"):
        distilling_trainer(tmp_path / "parts", other).run()


def test_a_teacher_of_other_labels_or_resize_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_checkpoint(path, build_network("P", 2), Description("cells", "P", ("a", "b"), 64, 64))
    assert load_teacher(path, ("a", "b"), "stretch").num_classes == 2
    with pytest.raises(UnusableWeights, match="a teacher needs the same data"):
        load_teacher(path, ("a", "c"), "stretch")
    with pytest.raises(UnusableWeights, match="resize=stretch"):
        load_teacher(path, ("a", "b"), "fit")
