"""`damoserve-compress build` and `benchmark`: profiles, and their latencies."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from damoserve_compress.commands.options import (
    SERVED,
    DataFolder,
    Device,
    License,
    RepositoryFolder,
    Setting,
    exit_on_build_error,
    exit_on_error,
    origins,
    read_data,
    tuning_config,
    validation_name,
)
from damoserve_profiles.manifest import Accuracy, Manifest
from damoserve_profiles.recipe import RECIPES, read_recipe
from damoserve_profiles.repository import BUNDLED, Repository, RepositoryError

if TYPE_CHECKING:
    from damoserve_compress.measure.runtime import Runtime

TrainRecipe = Annotated[str, typer.Option(help="Training recipe of the fine-tuning.")]
Work = Annotated[Path, typer.Option(help="Folder for intermediate results; what it has is not made again.")]


def build(  # noqa: PLR0913, PLR0917
    checkpoint: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Trained network (safetensors).")],
    data: DataFolder,
    work: Work,
    repository: RepositoryFolder,
    version: Annotated[int, typer.Option(min=1)] = 1,
    recipe: Annotated[
        list[Path] | None, typer.Option(help="Recipe file; may be repeated. Default: all bundled recipes.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of every profile.")] = 100,
    score: Annotated[float, typer.Option(min=0, max=1, help="Default score threshold of the profiles.")] = SERVED.score,
    train_recipe: TrainRecipe = "default",
    setting: Setting = None,
    device: Device = None,
    license_: License = None,
    openvino: Annotated[
        bool, typer.Option("--openvino", help="Time the profiles in OpenVINO too; it is preferred where it is faster.")
    ] = False,
) -> None:
    """Build profiles from a trained network: prune, export, quantise, validate, measure."""
    from damoserve_compress.build.builder import BuildConfig, Builder

    with exit_on_build_error():
        recipes = [read_recipe(path) for path in recipe or sorted(RECIPES.glob("*.yaml"))]
        training = tuning_config(train_recipe, setting, device)
        train_set, val_set = read_data(data)
        config = BuildConfig(
            checkpoint=checkpoint,
            repository=repository,
            work=work,
            data_name=validation_name(data),
            thresholds=SERVED.model_copy(update={"score": score}),
            version=version,
            training=training,
            rounds=rounds,
            engines=("onnxruntime", "openvino") if openvino else ("onnxruntime",),
            license=license_,
            data=origins(data, train_set),
        )
        manifests = Builder(config, train_set, val_set, typer.echo).build(recipes)
    for manifest in manifests:
        accuracy, latency = manifest.accuracy, manifest.latency
        typer.echo(
            f"{manifest.profile:12} AP {accuracy.ap:.4f}  AP50 {accuracy.ap50:.4f}"
            f"  {manifest.model_bytes / 1e6:6.2f} MB  {latency.median_ms:7.2f} ms"
        )


def benchmark(
    repository: RepositoryFolder = BUNDLED,
    reference: Annotated[str, typer.Option(help="Profile that the others are compared with.")] = "fp32",
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of every profile.")] = 200,
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Time every profile in every installed engine, interleaved, from the image tensor to the candidate boxes."""
    source = Repository(repository)
    if not source.models():
        raise typer.BadParameter(f"{repository} holds no model", param_hint="--repository")
    for model in source.models():
        folders = source.profiles(model, source.versions(model)[-1])
        with exit_on_error(RepositoryError):
            profiles = {folder.model_path: folder.verify() for folder in folders}
        ordered = dict(sorted(profiles.items(), key=lambda item: item[1].profile != reference))
        if reference not in [manifest.profile for manifest in profiles.values()]:
            raise typer.BadParameter(f"{model} has no profile {reference}", param_hint="--reference")
        with exit_on_error(ValueError):
            _compare(model, ordered, rounds, threads)


def _compare(model: str, profiles: dict[Path, Manifest], rounds: int, threads: int) -> None:
    """Prints each profile in each engine against the first."""
    from damoserve_compress.measure.timing import speed_up, summarise, time_models

    columns = _columns(profiles)
    first = next(iter(profiles.values()))
    times = time_models([(path, runtime) for path, _, runtime in columns], first.input.size, rounds, threads)
    latency = summarise(times[:, 0], threads)
    engines = ", ".join(sorted({runtime.version() for _, _, runtime in columns}))
    typer.echo(f"{model}: {latency.cpu} ({latency.instruction_set}), {threads} thread(s), {engines}")
    for column, (_, manifest, runtime) in enumerate(columns):
        ratio = speed_up(times, column)
        typer.echo(
            f"{manifest.profile:12} {runtime.engine:11} {summarise(times[:, column], threads).median_ms:8.2f} ms"
            f"  {ratio.median:5.2f}x ({ratio.lower:.2f} to {ratio.upper:.2f})"
            f"  {_accuracy(manifest.accuracy, first.accuracy)}"
            f"  {manifest.model_bytes / 1e6:5.2f} MB ({manifest.model_bytes / first.model_bytes:.3f})"
        )


def _columns(profiles: dict[Path, Manifest]) -> "list[tuple[Path, Manifest, Runtime]]":
    """The profiles to time, each in every installed engine that can run it."""
    from damoserve_compress.measure.runtime import Runtime, installed_engines

    return [
        (path, manifest, Runtime(engine, manifest.precision))
        for path, manifest in profiles.items()
        if manifest.recipe.target == "cpu"
        for engine in ((manifest.engine,) if manifest.precision is not None else installed_engines())
    ]


def _accuracy(accuracy: Accuracy, first: Accuracy) -> str:
    """AP against the source network where the manifest has its interval, else against the first profile."""
    from damoserve_compress.measure.bootstrap import Interval

    change = accuracy.difference
    if change is None:
        return f"AP {100 * accuracy.ap:5.2f} ({100 * (accuracy.ap - first.ap):+.2f})"
    difference = Interval(change.ap, change.lower, change.upper)
    return f"AP {100 * accuracy.ap:5.2f}, {difference} against {change.reference}"
