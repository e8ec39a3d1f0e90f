"""Training recipes: the bundled ones, one's own, and what the command line changes."""

from pathlib import Path

import pytest
import torch

from damoserve_compress.training.config import RECIPES, TrainConfig, TrainConfigError, learning_rate_factor
from damoserve_compress.training.config import read_train_config as read
from damoserve_compress.training.device import choose_precision


@pytest.mark.parametrize("name", [path.stem for path in RECIPES.glob("*.yaml")])
def test_bundled_recipes_are_valid_and_differ_from_the_defaults(name: str) -> None:
    assert read(name).curve() != TrainConfig().curve()


def test_the_published_recipes() -> None:
    dense, nano = read("damo"), read("damo-nano")
    assert (dense.optimiser, dense.learning_rate, dense.weight_decay) == ("sgd", 0.04, 5e-4)
    assert (nano.optimiser, nano.learning_rate, nano.weight_decay) == ("adamw", 0.004, 0.01)
    assert (dense.augment.mosaic, dense.augment.mixup, dense.augment.scale) == (1, 0.15, (0.1, 2))
    assert dense.augment.boxes is not None
    for recipe in (dense, nano):
        assert (recipe.epochs, recipe.tail_epochs, recipe.batch_size, recipe.warmup_epochs) == (300, 16, 256, 5)
        assert (recipe.final_factor, recipe.ema_decay, recipe.ema_tau, recipe.grad_clip) == (0.05, 0.9998, 2000, None)
        assert (recipe.augment.rotation, recipe.augment.even_scale, recipe.tail_affine) == (10, True, False)
    assert (dense.size, nano.size, dense.augment.shear, nano.augment.shear) == (640, 416, 2, 0.2)


def test_what_is_said_last_counts(tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text("epochs: 7\nbatch_size: 3\naugment: {mosaic: 0.5, scale: [0.5, 2]}\n")
    settings = ["batch_size=5", "augment.mixup=0.25", "sizes=[64, 96]"]
    config = read(str(recipe), {"precision": "bfloat16", "epochs": 1}, {"seed": 9}, settings)
    assert (config.precision, config.epochs, config.seed, config.batch_size) == ("bfloat16", 7, 9, 5)
    assert (config.augment.mosaic, config.augment.mixup, config.augment.scale) == (0.5, 0.25, (0.5, 2))
    assert config.sizes == (64, 96)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["size=65"], "size: .*multiple of 32"),
        (["augment.mosaic=2"], r"augment\.mosaic: .*less than or equal to 1"),
        (["augment.mosiac=1"], r"augment\.mosiac: "),
        (["epoch=3"], "epoch: "),
        (["tail_epochs=120"], "fewer than epochs"),
        (["epochs"], "FIELD=VALUE, not epochs"),
        (["size=0", "seed=x"], "size: .*; seed: "),
        (["seed=-1"], "seed: "),
        (["model=../x"], "model: .*pattern"),
        (["augment.scale=[2, 1]"], r"augment\.scale: the smallest comes first"),
        (["augment={"], "no YAML value"),
        (["loss.beta=-1"], r"loss\.beta: "),
        (["augment.boxes.box_probability=-2"], r"augment\.boxes\.box_probability: "),
    ],
)
def test_faults_name_the_fields(settings: list[str], message: str) -> None:
    with pytest.raises(TrainConfigError, match=message):
        read("default", settings=settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "neither a file nor one of default, cells, damo"), ("- 1", "no fields"), ("{", "cannot be read")],
)
def test_unusable_files_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "own.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TrainConfigError, match=rf"own\.yaml.*{message}"):
        read(str(path))


def test_learning_rate_rises_then_falls_to_its_share_and_stays_there() -> None:
    config = TrainConfig(epochs=10, warmup_epochs=2, final_factor=0.05, tail_epochs=3)
    factors = [learning_rate_factor(step, 10, config) for step in range(101)]
    assert factors[:20] == sorted(factors[:20])
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert max(factors) == pytest.approx(1)
    assert factors[10] / factors[20] == pytest.approx((11 / 21) ** 2)  # quadratic
    assert factors[45] == pytest.approx((1 + 0.05) / 2)  # half the cosine
    assert factors[70:] == pytest.approx([0.05] * 31)


def test_evaluations_come_first_now_and_then_and_throughout_the_tail() -> None:
    config = TrainConfig(epochs=12, eval_every=4, tail_epochs=3)
    assert [epoch for epoch in range(12) if config.is_evaluated(epoch)] == [0, 3, 7, 9, 10, 11]


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(TrainConfigError, match="no device foo"):
        choose_precision("foo")


def test_bfloat16_only_where_the_processor_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, precision in (({"avx512_bf16": True}, "bfloat16"), ({"avx2": True}, "float32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert choose_precision("cpu") == precision
