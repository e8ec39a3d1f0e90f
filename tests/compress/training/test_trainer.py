"""A tiny network on drawn squares: what a run leaves, that it learns, and that interruptions do not show."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from damoserve_compress.datasets import Sample
from damoserve_compress.measure.evaluate import Metrics
from damoserve_compress.network import Network, build_network
from damoserve_compress.network.checkpoint import Description, load_checkpoint, save_checkpoint
from damoserve_compress.prune import cut, find_groups, uniform
from damoserve_compress.training.augment import AugmentConfig
from damoserve_compress.training.checkpoint import Diverged, ResumeMismatch, UnusableState, UnusableWeights
from damoserve_compress.training.config import TrainConfig, learning_rate_factor
from damoserve_compress.training.ema import ModelEma
from damoserve_compress.training.optimiser import parameter_groups
from damoserve_compress.training.rendered import rendered_fits
from damoserve_compress.training.start import new_network
from damoserve_compress.training.trainer import BEST_MODEL, MODEL, Trainer
from tests.support.compress.toy_training import CONFIG, TINY, Squares, tiny_network


def tiny_trainer(out: Path, config: TrainConfig = CONFIG, network: Network | None = None) -> Trainer:
    return Trainer(network or tiny_network(), config, (Squares(8), Squares(4, first=100)), out)


def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = tiny_trainer(tmp_path / "whole").run()
    tiny_trainer(tmp_path / "parts").run(epochs=1)
    again = tiny_trainer(tmp_path / "parts")
    with torch.no_grad():  # everything that matters has to come from the checkpoint
        for parameter in again.network.parameters():
            parameter.fill_(7)
    resumed = again.run()
    assert [record.loss for record in whole.history] == [record.loss for record in resumed.history]
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name


def test_a_run_leaves_model_summary_and_log(tmp_path: Path) -> None:
    result = tiny_trainer(tmp_path, replace(CONFIG, epochs=4, eval_every=3)).run()
    summary = json.loads((tmp_path / "training.json").read_text())
    assert summary["config"]["seed"] == 3
    assert summary["labels"] == ["light", "red"]
    assert summary["epochs_done"] == 4
    assert summary["metrics"]["ap"] == result.metrics.ap
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert [bool(row["ap"]) for row in rows] == [True, False, True, True]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_best_weights_are_kept_apart_from_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([0.2, 0.6, 0.4])

    def evaluate(self: Trainer) -> Metrics:
        return Metrics(next(accuracies), 0.5, 0.5, {}, {}, 4)

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    states = []
    for epochs in (2, 3):
        tiny_trainer(tmp_path, replace(CONFIG, eval_every=1)).run(epochs=epochs)
        states.append([load_checkpoint(tmp_path / name)[0].state_dict() for name in (BEST_MODEL, MODEL)])
    key = "head.gfl_cls.0.weight"
    (best, last), (still_best, new_last) = states
    assert torch.equal(best[key], last[key])
    assert torch.equal(still_best[key], best[key])
    assert not torch.equal(new_last[key], best[key])


def test_the_gradient_is_clipped_and_the_rate_follows_its_schedule(tmp_path: Path) -> None:
    config = replace(CONFIG, optimiser="sgd", momentum=0, weight_decay=0, grad_clip=1e-3, learning_rate=1)
    trainer = tiny_trainer(tmp_path, config)
    before = torch.cat([parameter.detach().flatten().clone() for parameter in trainer.network.parameters()])
    trainer.train_step(next(iter(trainer.batches.epoch(0))))
    after = torch.cat([parameter.detach().flatten() for parameter in trainer.network.parameters()])
    rate = learning_rate_factor(0, len(trainer.batches), config)
    assert float((after - before).norm()) == pytest.approx(1e-3 * rate, rel=1e-2)


def test_a_damaged_state_is_refused_and_named(tmp_path: Path) -> None:
    tiny_trainer(tmp_path).run(epochs=1)
    state = tmp_path / "checkpoint.pt"
    whole = state.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"abc"):
        state.write_bytes(damaged)
        with pytest.raises(UnusableState, match=r"checkpoint\.pt is damaged"):
            tiny_trainer(tmp_path).run()
    torch.save({"step": 3}, state)
    with pytest.raises(UnusableState, match="lacks curve, ema"):
        tiny_trainer(tmp_path).run()


def test_a_gradient_that_is_no_number_ends_the_run_before_it_is_applied(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    weight = trainer.network.head.gfl_reg[0].weight
    weight.register_hook(lambda gradient: gradient * math.nan)
    before = weight.detach().clone()
    with pytest.raises(Diverged, match="step 0: loss or gradient"):
        trainer.run()
    assert torch.equal(weight.detach(), before)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = tiny_trainer(tmp_path).run()
    again = tiny_trainer(tmp_path).run()
    assert again.history == first.history
    assert again.metrics == first.metrics


def test_another_configuration_is_not_resumed(tmp_path: Path) -> None:
    tiny_trainer(tmp_path).run(epochs=1)
    other = TrainConfig(size=64, epochs=3, batch_size=4, learning_rate=1e-3, warmup_epochs=0.5, ema_tau=5, seed=4)
    with pytest.raises(ResumeMismatch, match="learning_rate, seed"):
        tiny_trainer(tmp_path, other).run()
    tiny_trainer(tmp_path, other).run(resume=False, epochs=1)


def test_it_learns(tmp_path: Path) -> None:
    calm = AugmentConfig(scale=(1.0, 1.1))
    config = TrainConfig(
        size=64, epochs=30, batch_size=8, eval_every=30, learning_rate=1e-2, warmup_epochs=2, ema_tau=20, augment=calm
    )
    result = Trainer(tiny_network(), config, (Squares(24), Squares(8, first=100)), tmp_path).run()
    losses = [record.loss for record in result.history]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert result.metrics.ap50 > 0.5


def test_rendered_images_are_mixed_in(tmp_path: Path) -> None:
    class Unlabelled(Squares):
        labels = ("RBC", "WBC", "Platelets")

    config = TrainConfig(size=64, epochs=1, batch_size=4, rendered=4, warmup_epochs=0)
    torch.manual_seed(0)
    trainer = Trainer(build_network(TINY, 3), config, (Unlabelled(4), Unlabelled(2)), tmp_path)
    assert len(trainer.batches) == 2
    identical = [sample.identifier for batch in trainer.batches.epoch(0) for sample in batch.samples]
    assert len(identical) == 8
    assert math.isfinite(trainer.run().history[0].loss)


def test_training_and_validation_labels_must_agree(tmp_path: Path) -> None:
    class Renamed(Squares):
        labels = ("light", "green")

    with pytest.raises(ValueError, match="differ"):
        Trainer(tiny_network(), CONFIG, (Squares(4), Renamed(4)), tmp_path)


def test_ema_follows_its_decay_and_copies_counters() -> None:
    linear, norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
    network = nn.Sequential(linear, norm)
    ema = ModelEma(network, decay=0.9, tau=10)
    assert norm.running_mean is not None
    assert norm.num_batches_tracked is not None
    before = linear.weight.detach().clone()
    with torch.no_grad():
        linear.weight += 1
        norm.running_mean += 4
        norm.num_batches_tracked += 7
    ema.update(network)
    decay = 0.9 * (1 - math.exp(-1 / 10))
    averaged: Any = ema.network
    assert torch.allclose(averaged[0].weight, before + (1 - decay))
    assert torch.allclose(averaged[1].running_mean, torch.full((2,), 4 * (1 - decay)))
    assert averaged[1].num_batches_tracked == 7


def test_norms_biases_and_scales_do_not_decay() -> None:
    network = tiny_network()
    decayed, others = parameter_groups([network], 0.05)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert all(names[id(parameter)].endswith("weight") for parameter in decayed["params"])  # type: ignore[attr-defined]
    rest = {names[id(parameter)] for parameter in others["params"]}  # type: ignore[attr-defined]
    assert {"head.scales.0.scale", "head.gfl_cls.0.bias"} <= rest
    assert len(decayed["params"]) + len(rest) == len(names)  # type: ignore[arg-type]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Variant P, pruned, for three labels."""
    torch.manual_seed(0)
    path = tmp_path / "start.safetensors"
    network = build_network("P", 3)
    groups = find_groups(network, "l1")
    save_checkpoint(
        path, cut(network, groups, uniform(groups, 0.5, 8)), Description("cells", "P", ("a", "b", "c"), 64, 64)
    )
    return path


def test_a_checkpoint_starts_as_it_is_or_with_a_new_class_head(checkpoint: Path) -> None:
    stored, _ = load_checkpoint(checkpoint)
    same = new_network(CONFIG, ("a", "b", "c"), checkpoint).state_dict()
    assert all(torch.equal(tensor, same[key]) for key, tensor in stored.state_dict().items())
    other = new_network(CONFIG, ("x", "y"), checkpoint)
    assert other.num_classes == 2
    assert other.raw(torch.zeros(1, 3, 64, 64)).class_logits.shape[-1] == 2
    for key, tensor in other.state_dict().items():
        assert "gfl_cls" in key or torch.equal(tensor, stored.state_dict()[key])


def test_a_checkpoint_of_another_variant_or_resize_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UnusableWeights, match="variant P"):
        new_network(replace(CONFIG, variant="T"), ("a", "b", "c"), checkpoint)
    with pytest.raises(UnusableWeights, match="resize=stretch"):
        new_network(replace(CONFIG, resize="fit"), ("a", "b", "c"), checkpoint)


def test_a_run_does_not_go_on_with_other_data_or_another_start(tmp_path: Path) -> None:
    tiny_trainer(tmp_path).run(epochs=1)
    with pytest.raises(ResumeMismatch, match="data"):
        Trainer(tiny_network(), CONFIG, (Squares(8, first=50), Squares(4, first=100)), tmp_path).run()
    with pytest.raises(ResumeMismatch, match="weights"):
        tiny_trainer(tmp_path, network=tiny_network(seed=9)).run()


def test_a_run_whose_loss_is_no_number_ends(tmp_path: Path) -> None:
    network = tiny_network()
    layer: Any = network.head.gfl_cls[0]
    with torch.no_grad():
        layer.bias.fill_(math.nan)
    with pytest.raises(Diverged, match="not finite"):
        tiny_trainer(tmp_path, network=network).run()


def test_rendered_scenes_fit_only_data_with_blood_cells() -> None:
    assert rendered_fits(("Platelets", "RBC", "WBC", "other"))
    assert not rendered_fits(("cat", "RBC"))


@pytest.mark.parametrize(
    "change", [{"precision": "bfloat16"}, {"optimiser": "sgd"}, {"sizes": (32, 64)}, {"resize": "fit"}]
)
def test_other_ways_to_train_resume_to_the_same_weights_too(tmp_path: Path, change: dict[str, Any]) -> None:
    config = replace(CONFIG, epochs=2, **change)
    whole = tiny_trainer(tmp_path / "whole", config).run()
    tiny_trainer(tmp_path / "parts", config).run(epochs=1)
    resumed = tiny_trainer(tmp_path / "parts", config).run()
    assert whole.history[0].loss != tiny_trainer(tmp_path / "plain").run(epochs=1).history[0].loss
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name


def test_pictures_without_boxes_and_batches_of_nothing_else_are_trained_on(tmp_path: Path) -> None:
    class Empty(Squares):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            count = 0 if index < 6 else len(sample.boxes)
            return Sample(sample.image, sample.boxes[:count], sample.labels[:count], index)

    config = replace(CONFIG, batch_size=2, augment=AugmentConfig(mosaic=0.5, mixup=0.5))
    result = Trainer(tiny_network(), config, (Empty(8), Squares(4, first=100)), tmp_path).run()
    assert all(math.isfinite(record.loss) for record in result.history)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_takes_the_same_first_step(tmp_path: Path) -> None:
    trainers = [tiny_trainer(tmp_path / device, replace(CONFIG, device=device)) for device in ("cpu", "cuda")]
    batch = next(iter(trainers[0].batches.epoch(0)))
    expected, found = (trainer.train_step(batch) for trainer in trainers)
    assert [float(value) for value in found] == pytest.approx([float(value) for value in expected], rel=1e-3)
    assert trainers[1].run().metrics.images == 4
