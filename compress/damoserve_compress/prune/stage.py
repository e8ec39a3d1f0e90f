"""Pruning as a stage of a build, kept in its work folder."""

from dataclasses import replace
from pathlib import Path

import torch

from damoserve_compress.benchmark import instruction_set
from damoserve_compress.datasets import Dataset, fingerprint
from damoserve_compress.datasets.subset import split_selection
from damoserve_compress.prune.cut import PruneError
from damoserve_compress.prune.recover import NETWORK, Pruning
from damoserve_compress.session import ONNX_RUNTIME
from damoserve_compress.source import SourceNetwork
from damoserve_compress.stages import Stages
from damoserve_compress.training.config import TrainConfig
from damoserve_compress.training.rendered import rendered_fits
from damoserve_profiles.recipe import Prune


def prune_stage(
    source: SourceNetwork, options: Prune, training: TrainConfig, data: tuple[Dataset, Dataset], stages: Stages
) -> Path:
    """The checkpoint of the cut and trained network.

    `data` are the images to train on and those that training is watched on; cuts are judged on a part of the former.
    `training` says how to train, but for what the recipe says itself. Raises PruneError or TrainingError.
    """
    description, (train_set, val_set), fine_tune = source.description, data, options.fine_tune
    if fine_tune is None:
        raise PruneError(f"there is nothing to cut: the recipe takes {options.network} as it is")
    tuning = replace(
        training,
        model=description.model,
        variant=description.variant,
        size=description.width,
        resize=description.resize,
        tail_epochs=0,  # meant for a whole training, it would be most of a short one
        learning_rate=fine_tune.learning_rate,
        rendered=fine_tune.rendered if rendered_fits(description.labels) else 0,
    )
    # The precision follows the machine: what was trained on another is not to be trained again here.
    curve = {name: value for name, value in tuning.curve().items() if name not in ("distil", "epochs", "precision")}
    inputs = {
        "checkpoint": source.sha256,
        "options": options.model_dump(),
        "training": curve,
        "images": fingerprint(train_set),
        "timed": [instruction_set(), ONNX_RUNTIME.version()] if options.latency is not None else None,
    }

    def make(folder: Path) -> None:
        torch.manual_seed(tuning.seed)
        _, selection = split_selection(train_set)
        Pruning(source.network, description, options, tuning, (train_set, selection, val_set)).run(
            folder, stages.report
        )

    return stages.run("prune", inputs, make) / NETWORK
