"""How much is cut, where, and that a pruning comes to an end whatever interrupts it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from damoserve_compress.build.pruning import prune_network
from damoserve_compress.build.trained_network import TrainedNetwork, read_network
from damoserve_compress.build.work_folder import WorkFolder
from damoserve_compress.datasets.subset import split_selection
from damoserve_compress.export import export_onnx
from damoserve_compress.measure.complexity import complexity
from damoserve_compress.network import Network
from damoserve_compress.network.checkpoint import Description, load_checkpoint, save_checkpoint
from damoserve_compress.prune import PruneError, find_groups
from damoserve_compress.prune.amount import bisect_cut, by_sensitivity, remaining_share
from damoserve_compress.prune.cut import Keep, cut, uniform
from damoserve_compress.prune.recover import NETWORK, REPORT
from damoserve_compress.prune.sensitivity import StageSensitivity, stage_sensitivity
from damoserve_compress.prune.statistics import plain_batches, reestimate_norms
from damoserve_compress.training.trainer import Trainer
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import FineTune, Prune
from tests.support.compress.toy_training import CONFIG, Squares, tiny_network

SIZE = Size(64, 64)
TRAIN, VAL = Squares(8), Squares(4, first=100)
FINE_TUNE = FineTune(epochs=2, learning_rate=1e-3, distil=0.5)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TrainedNetwork:
    path = tmp_path_factory.mktemp("source") / "squares.safetensors"
    save_checkpoint(path, tiny_network(), Description("squares", "tiny", Squares.labels, 64, 64))
    return read_network(path, TRAIN, VAL)


def pruned(source: TrainedNetwork, options: Prune, work: Path) -> tuple[Network, list[dict[str, object]]]:
    path = prune_network(source, options, CONFIG, (TRAIN, VAL), WorkFolder(work, lambda _: None)).path
    return load_checkpoint(path)[0], json.loads((path.parent / REPORT).read_text())


@pytest.mark.parametrize("amount", ["macs", "parameters"])
@pytest.mark.parametrize("importance", ["l1", "bn_scale", "taylor"])
def test_the_wanted_share_is_reached(source: TrainedNetwork, tmp_path: Path, amount: str, importance: str) -> None:
    fine_tune = FineTune(epochs=1, learning_rate=1e-3)
    options = Prune.model_validate(
        {amount: 0.6, "importance": importance, "round_to": 2, "fine_tune": fine_tune.model_dump()}
    )
    network, [report] = pruned(source, options, tmp_path)
    before, after = complexity(source.network, SIZE), complexity(network, SIZE)
    index = ("parameters", "macs").index(amount)
    assert 0.4 < after[index] / before[index] <= 0.6
    assert report["left"] == pytest.approx(after[index] / before[index])
    assert (report["parameters"], report["macs"]) == after


def test_cuts_in_steps_end_where_one_cut_would(source: TrainedNetwork, tmp_path: Path) -> None:
    options = Prune(macs=0.5, round_to=2, steps=2, step_epochs=1, allocation="sensitivity", fine_tune=FINE_TUNE)
    network, reports = pruned(source, options, tmp_path)
    assert [report["wanted"] for report in reports] == pytest.approx([0.5**0.5, 0.5])
    assert complexity(network, SIZE)[1] <= 0.5 * complexity(source.network, SIZE)[1]
    assert all(report["sensitivity"] for report in reports)


def test_latency_is_measured_against_the_whole_network(source: TrainedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[list[int]] = []

    def by_bytes(paths: list[Path], size: Size, rounds: int) -> NDArray[np.float64]:
        """A machine whose time is the file's size."""
        assert size == SIZE
        timed.append([path.stat().st_size for path in paths])
        return np.array([timed[-1]] * rounds, np.float64)

    exported: list[Network] = []

    def export(network: Network, *rest: Any) -> None:
        exported.append(network)
        export_onnx(network, *rest)

    monkeypatch.setattr("damoserve_compress.prune.amount.time_models", by_bytes)
    monkeypatch.setattr("damoserve_compress.prune.amount.export_onnx", export)
    wanted, share = remaining_share(Prune(latency=0.5, fine_tune=FINE_TUNE), source.network, SIZE)
    groups = find_groups(source.network, "l1")
    smaller = cut(source.network, groups, uniform(groups, 0.5, 2))
    shares = share(source.network), share(smaller)
    whole, small = timed[1]
    assert wanted == 0.5
    assert timed[0] == [whole, whole]
    assert shares == pytest.approx((1, small / whole))
    assert small < whole
    assert len(exported) == 3  # the whole network once, then what it is compared with


def test_a_latency_is_timed_on_this_machine(source: TrainedNetwork) -> None:
    _, share = remaining_share(Prune(latency=0.5, fine_tune=FINE_TUNE), source.network, SIZE)
    assert share(source.network) > 0


def test_rendered_scenes_of_other_things_are_refused(source: TrainedNetwork, tmp_path: Path) -> None:
    options = Prune(macs=0.5, fine_tune=FINE_TUNE.model_copy(update={"rendered": 4}))
    with pytest.raises(PruneError, match=r"squares has no labels \(light, red\): take fine_tune\.rendered out"):
        pruned(source, options, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_reached_is_said(source: TrainedNetwork, tmp_path: Path) -> None:
    with pytest.raises(PruneError, match="choose a larger share"):
        pruned(source, Prune(macs=0.01, round_to=4, fine_tune=FINE_TUNE), tmp_path)


@given(wanted=st.floats(0.05, 1), sizes=st.lists(st.integers(1, 64), min_size=1, max_size=5))
def test_the_least_sufficient_cut_is_found(wanted: float, sizes: list[int]) -> None:
    def cuts(level: float) -> Keep:
        return {str(index): max(1, round(size * (1 - 0.99 * level))) for index, size in enumerate(sizes)}

    def share(keep: Keep) -> float:
        return sum(keep.values()) / sum(sizes)

    if share(cuts(1.0)) > wanted:
        with pytest.raises(PruneError):
            bisect_cut(wanted, share, cuts)
        return
    keep, left = bisect_cut(wanted, share, cuts)
    assert left == share(keep) <= wanted
    level = next(index / 256 for index in range(257) if cuts(index / 256) == keep)
    assert level == 0 or share(cuts(level - 1 / 256)) > wanted


def test_stages_that_suffer_less_lose_more() -> None:
    rows = [
        StageSensitivity("a", 64, (0.25, 0.5, 0.75), (0.0, 0.1, 0.4)),
        StageSensitivity("b", 64, (0.25, 0.5, 0.75), (0.4, 0.3, 0.8)),
    ]
    assert rows[0].ratio(0.1) == pytest.approx(0.5)
    assert rows[1].ratio(0.1) == pytest.approx(0.0625)
    assert rows[1].ratio(0.4) == pytest.approx(0.5)  # the larger cut hurt no more than the smaller
    assert rows[0].ratio(9) == 0.75
    groups = find_groups(tiny_network(), "l1")
    measured = [StageSensitivity(stage, 8, (0.25, 0.5, 0.75), (0.0, 0.0, 0.0)) for stage in {g.stage for g in groups}]
    keep = by_sensitivity(groups, [replace(measured[0], rises=(0.5, 0.6, 0.7)), *measured[1:]], 0.1, 1)
    spared = {group.root: group.channels for group in groups if group.stage == measured[0].stage}
    assert all(keep[root] > 0.9 * channels for root, channels in spared.items())
    assert all(keep[g.root] < 0.4 * g.channels for g in groups if g.root not in spared)


def test_a_stage_that_does_nothing_is_not_sensitive() -> None:
    network = tiny_network().eval()
    convolution: Any = network.neck.bu_conv13
    with torch.no_grad():
        # What this convolution passes on is cut off by its norm.
        convolution.bn.weight.zero_()
    groups = find_groups(network, "l1")
    batches = plain_batches(TRAIN, CONFIG, 8)
    rows = {row.stage: row for row in stage_sensitivity(network, groups, (batches, batches), CONFIG, 2)}
    assert rows["neck.bu_conv13"].rises == pytest.approx((0, 0, 0), abs=1e-6)
    assert any(max(map(abs, row.rises)) > 1e-4 for row in rows.values())


def test_norms_get_the_statistics_of_the_images() -> None:
    network = tiny_network().train()
    batches = plain_batches(TRAIN, CONFIG, 8)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    inputs: list[torch.Tensor] = []
    norms[0].register_forward_hook(lambda _, args, __: inputs.append(args[0].detach()))
    reestimate_norms(network, batches)
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in inputs]).mean(0)
    torch.testing.assert_close(norms[0].running_mean, mean, rtol=1e-4, atol=1e-4)
    assert norms[0].momentum == 0.03


def test_an_interrupted_pruning_goes_on_with_its_cut(
    source: TrainedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Prune(macs=0.5, round_to=2, steps=2, step_epochs=1, importance="taylor", fine_tune=FINE_TUNE)
    whole, _ = pruned(source, options, tmp_path / "whole")
    step = Trainer.train_step
    done = 0

    def stop(trainer: Trainer, batch: object) -> object:
        nonlocal done
        done += 1
        if done == 4:  # the first step of the second cut's second epoch
            raise KeyboardInterrupt
        return step(trainer, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "train_step", stop)
    with pytest.raises(KeyboardInterrupt):
        pruned(source, options, tmp_path / "parts")
    assert not list((tmp_path / "parts").glob(f"*/{NETWORK}"))
    network, _ = pruned(source, options, tmp_path / "parts")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name


def test_choices_are_made_on_images_that_ranges_are_not_taken_from() -> None:
    calibration, selection = split_selection(Squares(20))
    first, second = ({part[index].identifier for index in range(len(part))} for part in (calibration, selection))
    assert len(first) + len(second) == 20
    assert not first & second
    assert len(second) == 5
    assert [len(part) for part in split_selection(Squares(1))] == [1, 1]
