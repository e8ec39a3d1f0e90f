"""A tiny network on drawn squares: what a run leaves, that it learns, and that interruptions do not show."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from damoserve_compress.datasets import Sample
from damoserve_compress.network import Network, build_network
from damoserve_compress.network.checkpoint import Description, load_checkpoint, save_checkpoint
from damoserve_compress.network.structures import NeckStructure, StageStructure, Structure
from damoserve_compress.prune import prune
from damoserve_compress.training.augment import AugmentConfig
from damoserve_compress.training.checkpoint import Diverged, ResumeMismatch, UnusableWeights
from damoserve_compress.training.config import TrainConfig, learning_rate_factor
from damoserve_compress.training.ema import ModelEma
from damoserve_compress.training.loader import BatchLoader, LoaderConfig
from damoserve_compress.training.trainer import Trainer, new_network, parameter_groups, rendered_fits
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import FineTune, Prune

TINY = Structure(
    name="tiny",
    stem_channels=8,
    stages=(
        StageStructure(8, 8, bottleneck=8, depth=1),
        StageStructure(8, 16, bottleneck=8, depth=1),
        StageStructure(16, 16, bottleneck=8, depth=1),
        StageStructure(16, 16, bottleneck=8, depth=1),
    ),
    neck=NeckStructure(out_channels=(16, 16, 16), blocks=1),
)
CONFIG = TrainConfig(size=64, epochs=3, batch_size=4, eval_every=2, warmup_epochs=0.5, ema_tau=5, seed=3)


class Squares:
    """Bright squares on dark noise; item i is always the same picture."""

    labels = ("light", "red")

    def __init__(self, count: int, first: int = 0) -> None:
        self._count = count
        self._first = first

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._count:
            raise IndexError(index)
        rng = np.random.default_rng(self._first + index)
        image = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8)
        boxes, labels = [], []
        for left in (2, 34):
            side, top = int(rng.integers(14, 26)), int(rng.integers(2, 20))
            label = int(rng.integers(2))
            image[top : top + side, left : left + side] = [(240, 240, 240), (230, 40, 40)][label]
            boxes.append([left, top, left + side, top + side])
            labels.append(label)
        return Sample(image, np.array(boxes, np.float32), np.array(labels, np.int64), index)


def tiny_network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return build_network(TINY, 2)


def tiny_trainer(out: Path, config: TrainConfig = CONFIG, network: Network | None = None) -> Trainer:
    return Trainer(network or tiny_network(), config, Squares(8), Squares(4, first=100), out)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


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
    result = tiny_trainer(tmp_path).run()
    summary = json.loads((tmp_path / "training.json").read_text())
    assert summary["config"]["seed"] == 3
    assert summary["labels"] == ["light", "red"]
    assert summary["epochs_done"] == 3
    assert summary["metrics"]["ap"] == result.metrics.ap
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert [bool(row["ap"]) for row in rows] == [False, True, True]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


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
    result = Trainer(tiny_network(), config, Squares(24), Squares(8, first=100), tmp_path).run()
    losses = [record.loss for record in result.history]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert result.metrics.ap50 > 0.5


def test_rendered_images_are_mixed_in(tmp_path: Path) -> None:
    class Unlabelled(Squares):
        labels = ("RBC", "WBC", "Platelets")

    config = TrainConfig(size=64, epochs=1, batch_size=4, rendered=4, warmup_epochs=0)
    torch.manual_seed(0)
    trainer = Trainer(build_network(TINY, 3), config, Unlabelled(4), Unlabelled(2), tmp_path)
    assert len(trainer._loader) == 2
    identical = [sample.identifier for batch in trainer._loader.epoch(0) for sample in batch.samples]
    assert len(identical) == 8
    assert math.isfinite(trainer.run().history[0].loss)


def test_training_and_validation_labels_must_agree(tmp_path: Path) -> None:
    class Renamed(Squares):
        labels = ("light", "green")

    with pytest.raises(ValueError, match="differ"):
        Trainer(tiny_network(), CONFIG, Squares(4), Renamed(4), tmp_path)


def loader(count: int, batch_size: int = 4) -> BatchLoader:
    return BatchLoader(Squares(count), LoaderConfig(64, batch_size, 5, AugmentConfig()))


def test_batches_depend_on_seed_epoch_and_position_only() -> None:
    first, again = list(loader(8).epoch(2)), list(loader(8).epoch(2))
    assert all((a.images == b.images).all() for a, b in zip(first, again, strict=True))
    other = list(loader(8).epoch(3))
    assert any((a.images != b.images).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(("count", "sizes"), [(8, [4, 4]), (9, [4, 4]), (10, [4, 4, 2]), (1, [1])])
def test_an_epoch_has_every_image_once_but_for_a_small_rest(count: int, sizes: list[int]) -> None:
    batches = list(loader(count).epoch(0))
    assert [len(batch.images) for batch in batches] == sizes
    assert len(loader(count)) == len(sizes)
    seen = [sample.identifier for batch in batches for sample in batch.samples]
    assert len(set(seen)) == len(seen)


def test_an_epoch_can_be_left_early() -> None:
    batches = loader(64).epoch(0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]


def test_tensors_are_channels_last_floats() -> None:
    images, targets = next(loader(4).epoch(0)).tensors()
    assert images.shape == (4, 3, 64, 64)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert all(len(target.boxes) == len(target.labels) for target in targets)


def test_ema_follows_its_decay_and_copies_counters() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = ModelEma(network, decay=0.9, tau=10)
    before = network[0].weight.detach().clone()
    with torch.no_grad():
        network[0].weight += 1
        network[1].running_mean += 4
        network[1].num_batches_tracked += 7
    ema.update(network)
    decay = 0.9 * (1 - math.exp(-1 / 10))
    assert torch.allclose(ema.network[0].weight, before + (1 - decay))
    assert torch.allclose(ema.network[1].running_mean, torch.full((2,), 4 * (1 - decay)))
    assert ema.network[1].num_batches_tracked == 7


def test_norms_biases_and_scales_do_not_decay() -> None:
    network = tiny_network()
    decayed, others = parameter_groups(network, 0.05)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert all(names[id(parameter)].endswith("weight") for parameter in decayed["params"])  # type: ignore[attr-defined]
    rest = {names[id(parameter)] for parameter in others["params"]}  # type: ignore[attr-defined]
    assert {"head.scales.0.scale", "head.gfl_cls.0.bias"} <= rest
    assert len(decayed["params"]) + len(rest) == len(names)  # type: ignore[arg-type]


def test_learning_rate_rises_then_falls_to_its_share() -> None:
    config = TrainConfig(epochs=10, warmup_epochs=2, final_factor=0.05)
    factors = [learning_rate_factor(step, 10, config) for step in range(101)]
    assert factors[:20] == sorted(factors[:20])
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert max(factors) == pytest.approx(1)
    assert factors[-1] == pytest.approx(0.05)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Variant P, pruned, for three labels."""
    torch.manual_seed(0)
    options = Prune(ratio=0.5, round_to=8, fine_tune=FineTune(epochs=1, learning_rate=1e-3))
    path = tmp_path / "start.safetensors"
    network = prune(build_network("P", 3), Size(64, 64), options)
    save_checkpoint(path, network, Description("cells", "P", ("a", "b", "c"), 64, 64))
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


def test_a_checkpoint_of_another_variant_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UnusableWeights, match="variant P"):
        new_network(replace(CONFIG, variant="T"), ("a", "b", "c"), checkpoint)


def test_a_run_does_not_go_on_with_other_data_or_another_start(tmp_path: Path) -> None:
    tiny_trainer(tmp_path).run(epochs=1)
    with pytest.raises(ResumeMismatch, match="data"):
        Trainer(tiny_network(), CONFIG, Squares(8, first=50), Squares(4, first=100), tmp_path).run()
    with pytest.raises(ResumeMismatch, match="weights"):
        tiny_trainer(tmp_path, network=tiny_network(seed=9)).run()


def test_a_run_whose_loss_is_no_number_ends(tmp_path: Path) -> None:
    network = tiny_network()
    with torch.no_grad():
        network.head.gfl_cls[0].bias.fill_(math.nan)
    with pytest.raises(Diverged, match="not finite"):
        tiny_trainer(tmp_path, network=network).run()


def test_rendered_scenes_fit_only_data_with_blood_cells() -> None:
    assert rendered_fits(("Platelets", "RBC", "WBC", "other"))
    assert not rendered_fits(("cat", "RBC"))
