"""`damoserve-compress train` and `distil`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from damoserve_compress.commands.options import DataFolder, Device, Setting, exit_on_error, read_data, training_config
from damoserve_profiles.repository import describe_file

if TYPE_CHECKING:
    from damoserve_compress.training.trainer import TrainResult

OutFolder = Annotated[Path, typer.Option(file_okay=False, help="Folder for checkpoint, weights and logs.")]
Model = Annotated[str, typer.Option(help="Name that the model is served under.")]
Recipe = Annotated[str, typer.Option(help="Training recipe: default, cells, damo, damo-nano, or a YAML file.")]
Variant = Annotated[str | None, typer.Option(help="T, S, M, L, Ns, Nm, Nl, P, or a structure file.")]
Resume = Annotated[bool, typer.Option(help="Go on from the checkpoint in the output folder, if any.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Default: the recipe's.")]
Size = Annotated[int | None, typer.Option(help="Side of the network's input in pixels, a multiple of 32.")]
Seed = Annotated[int | None, typer.Option(help="Default: the recipe's.")]


def train(  # noqa: PLR0913, PLR0917
    data: DataFolder,
    out: OutFolder,
    model: Model,
    recipe: Recipe = "default",
    variant: Variant = None,
    size: Size = None,
    epochs: Epochs = None,
    seed: Seed = None,
    setting: Setting = None,
    device: Device = None,
    resume: Resume = True,
    init: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Checkpoint of the same variant to start from.")
    ] = None,
) -> None:
    """Train a network, resuming where a run in the same folder stopped."""
    from damoserve_compress.training.checkpoint import TrainingError
    from damoserve_compress.training.config import TrainConfigError
    from damoserve_compress.training.start import new_network
    from damoserve_compress.training.trainer import Trainer

    with exit_on_error(TrainingError, ValueError, OSError):
        named = {"model": model, "variant": variant, "size": size, "epochs": epochs, "seed": seed}
        config = training_config(recipe, named, setting, device)
        if config.distil is not None:
            raise TrainConfigError("the recipe distils: use `damoserve-compress distil`, which takes the teacher")
        sets = read_data(data)
        network = new_network(config, sets[0].labels, init)
        result = Trainer(network, config, sets, out).run(resume=resume)
    _print_result(result, out)


def distil(  # noqa: PLR0913, PLR0917
    teacher: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Checkpoint of the teacher.")],
    data: DataFolder,
    out: OutFolder,
    model: Model,
    recipe: Recipe = "default",
    variant: Variant = None,
    size: Size = None,
    epochs: Epochs = None,
    seed: Seed = None,
    setting: Setting = None,
    device: Device = None,
    resume: Resume = True,
) -> None:
    """Train a network that also imitates the features of a teacher, trained on the same data."""
    from damoserve_compress.training.checkpoint import TrainingError
    from damoserve_compress.training.distil import DistilConfig, DistillationObjective
    from damoserve_compress.training.start import load_teacher, new_network
    from damoserve_compress.training.trainer import Trainer

    with exit_on_error(TrainingError, ValueError, OSError):
        named = {"model": model, "variant": variant, "size": size, "epochs": epochs, "seed": seed}
        config = training_config(recipe, named, setting, device)
        method = replace(config.distil or DistilConfig(), teacher=describe_file(teacher).sha256)
        config = replace(config, distil=method)
        sets = read_data(data)
        network = new_network(config, sets[0].labels)
        objective = DistillationObjective(
            network, load_teacher(teacher, sets[0].labels, config.resize), method, config.loss
        )
        result = Trainer(network, config, sets, out, objective).run(resume=resume)
    _print_result(result, out)


def _print_result(result: "TrainResult", out: Path) -> None:
    metrics = result.metrics
    typer.echo(f"AP {metrics.ap:.4f}, AP50 {metrics.ap50:.4f} on {metrics.images} images: {out}")
