"""The whole step: cut, give the norms their statistics, train; several times over where the recipe says so.

Everything is kept in a folder: an interrupted step goes on with the very cut that it had begun with.
"""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from damoserve_compress.datasets import Dataset
from damoserve_compress.measure.complexity import complexity
from damoserve_compress.network import Network
from damoserve_compress.network.checkpoint import Description, load_checkpoint, save_checkpoint
from damoserve_compress.prune.amount import LARGEST_RATIO, bisect_cut, by_sensitivity, remaining_share
from damoserve_compress.prune.cut import ChannelGroup, Keep, cut, find_groups, uniform
from damoserve_compress.prune.sensitivity import StageSensitivity, stage_sensitivity
from damoserve_compress.prune.statistics import accumulate_gradients, plain_batches, reestimate_norms
from damoserve_compress.training.config import TrainConfig
from damoserve_compress.training.distil import DistilConfig, DistillationObjective
from damoserve_compress.training.loader import Batch
from damoserve_compress.training.trainer import LOG, Trainer
from damoserve_profiles.files import replace_text
from damoserve_profiles.recipe import Prune

NETWORK = "network.safetensors"
REPORT = "prune.json"

_STATISTICS_IMAGES = 128
_JUDGED_IMAGES = 48


@dataclass(frozen=True)
class Cut:
    """The record of a cut: the amounts that were wanted and left, and the channels of every group."""

    wanted: float | None
    """Share that was to be left, of the amount that the recipe names; None for a plain ratio."""
    left: float | None
    parameters: int
    macs: int
    channels: dict[str, tuple[int, int]]
    """The channels of each group before and after, by its root."""
    sensitivity: tuple[StageSensitivity, ...]


class Pruning:
    """Cuts `network` as `options` say; `data` are the images to train on, to judge cuts on, and to validate on.

    `tuning` has everything about the training but its length and the distillation, which `options` have.
    """

    def __init__(
        self,
        network: Network,
        description: Description,
        options: Prune,
        tuning: TrainConfig,
        data: tuple[Dataset, Dataset, Dataset],
    ) -> None:
        self._whole = copy.deepcopy(network).to(tuning.device)
        self._description = description
        self._options = options
        self._tuning = tuning
        self._train_set, self._selection, self._val_set = data

    def run(self, folder: Path, report: Callable[[str], None] = print) -> Network:
        """The cut and trained network.

        `folder` gets it as `network.safetensors`, what was done as `prune.json`, and the logs of the trainings. Raises
        PruneError.
        """
        if (folder / NETWORK).exists() and (folder / REPORT).exists():  # only the end of an earlier call was missing
            _remove_step_folders(folder)
            return load_checkpoint(folder / NETWORK)[0]
        folder.mkdir(parents=True, exist_ok=True)
        network = self._whole
        steps = self._options.steps
        for step in range(1, steps + 1):
            work = folder / f"step-{step}"
            work.mkdir(exist_ok=True)
            report(f"cut {step} of {steps}")
            smaller = self._cut_or_load(network, step, work, report)
            network = self._train(smaller, step, work)
        cuts = [json.loads((folder / f"step-{step}" / REPORT).read_text()) for step in range(1, steps + 1)]
        replace_text(folder / REPORT, json.dumps(cuts, indent=1) + "\n")
        for step in range(1, steps + 1):
            shutil.copyfile(folder / f"step-{step}" / "training" / LOG, folder / f"training-{step}.csv")
        save_checkpoint(folder / NETWORK, network, self._description)
        _remove_step_folders(folder)
        return network.to("cpu")

    def _cut_or_load(self, network: Network, step: int, work: Path, report: Callable[[str], None]) -> Network:
        path = work / "cut.safetensors"
        if not path.exists():
            statistics = plain_batches(self._train_set, self._tuning, _STATISTICS_IMAGES)
            groups = self._groups(network, statistics)
            smaller, done = self._choose(network, groups, step, statistics, report)
            reestimate_norms(smaller, statistics)
            replace_text(work / REPORT, json.dumps(asdict(done)))
            save_checkpoint(path, smaller, self._description)
        smaller, _ = load_checkpoint(path)
        return smaller.train().requires_grad_(True)

    def _groups(self, network: Network, batches: list[Batch]) -> list[ChannelGroup]:
        importance = self._options.importance
        ranked = copy.deepcopy(network)
        if importance == "taylor":
            accumulate_gradients(ranked, batches, self._tuning)
        return find_groups(ranked, importance)

    def _choose(
        self,
        network: Network,
        groups: list[ChannelGroup],
        step: int,
        statistics: list[Batch],
        report: Callable[[str], None],
    ) -> tuple[Network, Cut]:
        options, size = self._options, self._description.input.size
        rows: tuple[StageSensitivity, ...] = ()
        wanted = left = None
        if options.ratio is not None:
            keep = uniform(groups, options.ratio, options.round_to)
        else:
            if options.allocation == "sensitivity":
                judged = plain_batches(self._selection, self._tuning, _JUDGED_IMAGES)
                report("measuring how much each stage suffers from cuts")
                measured = stage_sensitivity(network, groups, (statistics, judged), self._tuning, options.round_to)
                rows = tuple(measured)

            def cuts(level: float) -> Keep:
                if rows:
                    return by_sensitivity(groups, rows, level, options.round_to)
                return uniform(groups, level * LARGEST_RATIO, options.round_to)

            final, share = remaining_share(options, self._whole, size)
            wanted = final ** (step / options.steps)
            keep, left = bisect_cut(wanted, lambda keep: share(cut(network, groups, keep)), cuts)
        smaller = cut(network, groups, keep)
        parameters, macs = complexity(smaller, size)
        channels = {group.root: (group.channels, keep[group.root]) for group in groups}
        return smaller, Cut(wanted, left, parameters, macs, channels, rows)

    def _train(self, network: Network, step: int, work: Path) -> Network:
        options = self._options.fine_tune
        assert options is not None  # whatever is cut is trained
        epochs = options.epochs if step == self._options.steps else self._options.step_epochs
        tuning = replace(self._tuning, epochs=epochs)
        objective = None
        if options.distil:
            torch.manual_seed(tuning.seed)  # a resumed step, which takes its cut from a file, has drawn less
            method = DistilConfig(first_weight=options.distil, last_weight=options.distil / 10)
            tuning = replace(tuning, distil=method)
            teacher = copy.deepcopy(self._whole).eval()
            objective = DistillationObjective(network, teacher, method, tuning.loss)
        return Trainer(network, tuning, (self._train_set, self._val_set), work / "training", objective).run().network


def _remove_step_folders(folder: Path) -> None:
    for work in folder.glob("step-*"):
        shutil.rmtree(work)
