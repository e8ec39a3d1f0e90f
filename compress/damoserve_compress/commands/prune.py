"""`damoserve-compress prune`: the longest step of a build by itself, for a machine that trains faster."""

from pathlib import Path
from typing import Annotated

import typer

from damoserve_compress.commands.build import TrainRecipe, Work
from damoserve_compress.commands.options import (
    DataFolder,
    Device,
    Setting,
    exit_on_build_error,
    read_data,
    tuning_config,
)
from damoserve_profiles.recipe import RecipeError, read_recipe


def prune(  # noqa: PLR0913, PLR0917
    checkpoint: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Trained network (safetensors).")],
    data: DataFolder,
    work: Work,
    recipe: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Recipe with a step prune.")],
    train_recipe: TrainRecipe = "default",
    setting: Setting = None,
    device: Device = None,
) -> None:
    """Cut a network and train what is left, as `build` does, which takes the result from the same work folder."""
    from damoserve_compress.build.pruning import prune_network
    from damoserve_compress.build.trained_network import read_network
    from damoserve_compress.build.work_folder import WorkFolder
    from damoserve_compress.datasets.cache import CachedDataset

    with exit_on_build_error():
        options = read_recipe(recipe).prune
        if options is None:
            raise RecipeError(f"{recipe} has no step prune")
        training = tuning_config(train_recipe, setting, device)
        train_set, val_set = (CachedDataset(dataset) for dataset in read_data(data))
        source = read_network(checkpoint, train_set, val_set)
        cut = prune_network(source, options, training, (train_set, val_set), WorkFolder(work, typer.echo))
    typer.echo(f"pruned network: {cut.path}")
