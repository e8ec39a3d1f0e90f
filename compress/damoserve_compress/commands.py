"""The commands of `damoserve-compress`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from damoserve_profiles.manifest import Manifest, Thresholds
from damoserve_profiles.recipe import RECIPES, read_recipe
from damoserve_profiles.repository import BUNDLED, Repository, RepositoryError

if TYPE_CHECKING:
    from damoserve_compress.datasets.coco import CocoDataset

# This module is read for every `--help`: torch comes only when there is something to do.

DataFolder = Annotated[
    Path,
    typer.Option(
        envvar="DAMOSERVE_DATA", exists=True, file_okay=False, help="Folder with train.json, val.json and images/."
    ),
]
RepositoryFolder = Annotated[Path, typer.Option(file_okay=False, help="Repository of models.")]


@contextmanager
def _told(*kinds: type[Exception]) -> Iterator[None]:
    """Ends the command with one line for the errors that a user can cause."""
    try:
        yield
    except kinds as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error


def _read_data(folder: Path) -> "tuple[CocoDataset, CocoDataset]":
    """The training and the validation set. Raises DatasetError."""
    from damoserve_compress.datasets.coco import CocoDataset

    images = folder / "images"
    return CocoDataset(folder / "train.json", images), CocoDataset(folder / "val.json", images)


def train(  # noqa: PLR0913, PLR0917
    data: DataFolder,
    out: Annotated[Path, typer.Option(help="Folder for checkpoint, weights and logs.")],
    model: Annotated[str, typer.Option(help="Name that the model is served under.")],
    variant: Annotated[str, typer.Option(help="Size of the network.")] = "P",
    size: Annotated[int, typer.Option(help="Side of the network's input in pixels, a multiple of 32.")] = 416,
    epochs: Annotated[int, typer.Option(min=1)] = 120,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    rendered: Annotated[int, typer.Option(min=0, help="Rendered images mixed into every epoch.")] = 0,
    eval_every: Annotated[int, typer.Option(min=1, help="Epochs between evaluations.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="Torch's threads; 0 takes all cores.")] = 0,
    seed: Annotated[int, typer.Option()] = 0,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in the output folder, if any.")] = True,
    init: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Checkpoint of the same variant to start from.")
    ] = None,
) -> None:
    """Train a network, resuming where a run in the same folder stopped."""
    from damoserve_compress.training.checkpoint import TrainingError
    from damoserve_compress.training.config import TrainConfig
    from damoserve_compress.training.trainer import Trainer, new_network

    with _told(TrainingError, ValueError):
        train_set, val_set = _read_data(data)
        config = TrainConfig(
            model=model,
            variant=variant,
            size=size,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=lr,
            rendered=rendered,
            eval_every=eval_every,
            threads=threads,
            seed=seed,
        )
        network = new_network(config, train_set.labels, init)
        result = Trainer(network, config, train_set, val_set, out).run(resume=resume)
    typer.echo(f"AP {result.metrics.ap:.4f}, AP50 {result.metrics.ap50:.4f} on {result.metrics.images} images: {out}")


def build(  # noqa: PLR0913, PLR0917
    checkpoint: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Trained network (safetensors).")],
    data: DataFolder,
    work: Annotated[Path, typer.Option(help="Folder for intermediate results; fine-tuning resumes from it.")],
    repository: RepositoryFolder,
    version: Annotated[int, typer.Option(min=1)] = 1,
    recipe: Annotated[
        list[Path] | None, typer.Option(help="Recipe file; may be repeated. Default: all bundled recipes.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of every profile.")] = 100,
    score: Annotated[float, typer.Option(min=0, max=1, help="Default score threshold of the profiles.")] = 0.5,
) -> None:
    """Build profiles from a trained network: prune, export, quantise, validate, measure."""
    from damoserve_compress.build import BuildConfig, Builder, BuildError
    from damoserve_compress.export import ExportError
    from damoserve_compress.quantise import QuantisationError
    from damoserve_compress.training.checkpoint import TrainingError

    with _told(BuildError, ExportError, QuantisationError, RepositoryError, TrainingError, ValueError):
        recipes = [read_recipe(path) for path in recipe or sorted(RECIPES.glob("*.yaml"))]
        train_set, val_set = _read_data(data)
        thresholds = Thresholds(score=score, nms_iou=0.7, max_detections=100)
        config = BuildConfig(checkpoint, repository, work, f"{data.resolve().name}/val", thresholds, version, rounds)
        manifests = Builder(config, train_set, val_set, typer.echo).build(recipes)
    for manifest in manifests:
        accuracy, latency = manifest.accuracy, manifest.latency
        typer.echo(
            f"{manifest.profile:12} AP {accuracy.ap:.4f}  AP50 {accuracy.ap50:.4f}"
            f"  {manifest.model_bytes / 1e6:6.2f} MB  {latency.median_ms:7.2f} ms"
        )


def publish(
    checkpoint: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Trained network (safetensors).")],
    target: Annotated[Path, typer.Argument(dir_okay=False, help="File to write.")],
) -> None:
    """Write a checkpoint with half-precision weights, half as large, to be kept or passed on."""
    import torch

    from damoserve_compress.network.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

    with _told(CheckpointError):
        network, description = load_checkpoint(checkpoint)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(target, network, description, torch.float16)


def benchmark(
    repository: RepositoryFolder = BUNDLED,
    reference: Annotated[str, typer.Option(help="Profile that the others are compared with.")] = "fp32",
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of every profile.")] = 200,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Time the profiles of every model, interleaved, from the image tensor to the candidate boxes."""
    source = Repository(repository)
    if not source.models():
        raise typer.BadParameter(f"{repository} holds no model", param_hint="--repository")
    for model in source.models():
        folders = source.profiles(model, source.versions(model)[-1])
        with _told(RepositoryError):
            profiles = {folder.model_path: folder.verify() for folder in folders}
        ordered = dict(sorted(profiles.items(), key=lambda item: item[1].profile != reference))
        if reference not in [manifest.profile for manifest in profiles.values()]:
            raise typer.BadParameter(f"{model} has no profile {reference}", param_hint="--reference")
        _compare(model, ordered, rounds, threads)


def _compare(model: str, profiles: dict[Path, Manifest], rounds: int, threads: int) -> None:
    """Prints each profile against the first."""
    from damoserve_compress.benchmark import speed_up, summarise, time_models

    first = next(iter(profiles.values()))
    times = time_models(list(profiles), first.input.size, rounds, threads)
    latency = summarise(times[:, 0], threads)
    typer.echo(f"{model}: {latency.cpu} ({latency.instruction_set}), {threads} thread(s), {latency.runtime}")
    for column, manifest in enumerate(profiles.values()):
        ratio = speed_up(times, column)
        typer.echo(
            f"{manifest.profile:12} {summarise(times[:, column], threads).median_ms:8.2f} ms"
            f"  {ratio.median:5.2f}x ({ratio.lower:.2f} to {ratio.upper:.2f})"
            f"  AP {100 * manifest.accuracy.ap:5.2f} ({100 * (manifest.accuracy.ap - first.accuracy.ap):+.2f})"
            f"  {manifest.model_bytes / 1e6:5.2f} MB ({manifest.model_bytes / first.model_bytes:.3f})"
        )
