"""Pruning as a step of a build: the longest one, for the cut network is trained. Its result is kept."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch

from damoserve_compress.build.trained_network import TrainedNetwork
from damoserve_compress.build.work_folder import HashedFile, WorkFolder
from damoserve_compress.datasets import Dataset, fingerprint
from damoserve_compress.datasets.subset import split_selection
from damoserve_compress.measure.runtime import ONNX_RUNTIME
from damoserve_compress.measure.timing import instruction_set
from damoserve_compress.network.checkpoint import Description
from damoserve_compress.prune.cut import PruneError
from damoserve_compress.prune.recover import NETWORK, Pruning
from damoserve_compress.training.config import TrainConfig
from damoserve_compress.training.rendered import rendered_fits
from damoserve_profiles.recipe import Prune

OVERRIDDEN: Final[Mapping[str, str]] = MappingProxyType(
    dict.fromkeys(("epochs", "learning_rate", "rendered", "distil"), "the profile's recipe says it (prune.fine_tune)")
    | dict.fromkeys(("tail_epochs", "tail_affine"), "their training has no tail")
    | dict.fromkeys(("model", "variant", "size", "resize"), "it is the checkpoint's")
)
"""The fields of a training recipe that do not apply to cut networks, each with the reason."""


def fine_tuning_config(description: Description, options: Prune, training: TrainConfig) -> TrainConfig:
    """The settings for training a cut network: `training`, but for the fields in `OVERRIDDEN`. Raises PruneError."""
    fine_tune = options.fine_tune
    if fine_tune is None:
        raise PruneError(f"there is nothing to cut: the recipe takes {options.network} as it is")
    if fine_tune.rendered and not rendered_fits(description.labels):
        raise PruneError(
            f"rendered scenes show blood cells, for which {description.model} has no labels "
            f"({', '.join(description.labels)}): take fine_tune.rendered out of the recipe"
        )
    return replace(
        training,
        model=description.model,
        variant=description.variant,
        size=description.width,
        resize=description.resize,
        tail_epochs=0,  # meant for a whole training, it would be most of a short one
        learning_rate=fine_tune.learning_rate,
        rendered=fine_tune.rendered,
        distil=None,
    )


def prune_network(
    source: TrainedNetwork, options: Prune, training: TrainConfig, data: tuple[Dataset, Dataset], work: WorkFolder
) -> HashedFile:
    """Cuts a network and trains what is left; gives the checkpoint.

    `data` are the images to train on and those that training is watched on; cuts are judged on a part of the former.
    Trains as `fine_tuning_config` says. Raises PruneError or TrainingError.
    """
    (train_set, val_set), tuning = data, fine_tuning_config(source.description, options, training)
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
        Pruning(source.network, source.description, options, tuning, (train_set, selection, val_set)).run(
            folder, work.report
        )

    return work.run("prune", inputs, make).file(NETWORK)
