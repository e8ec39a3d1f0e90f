"""`damoserve-compress advise`: the profile for a target and its limits; where there is none, it can be built."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from damoserve_compress.advise import (
    Advice,
    Limits,
    Suggestion,
    as_candidate,
    bundled_recipes,
    decide,
    suggest,
)
from damoserve_compress.commands.options import (
    SERVED,
    RepositoryFolder,
    Setting,
    exit_on_build_error,
    exit_on_error,
    origins,
    read_data,
    tuning_config,
    validation_name,
)
from damoserve_profiles.manifest import MANIFEST_FILE, Manifest
from damoserve_profiles.recipe import Recipe, RecipeError, Target
from damoserve_profiles.repository import BUNDLED, Repository, RepositoryError


def advise(  # noqa: PLR0913, PLR0917
    repository: RepositoryFolder = BUNDLED,
    model: Annotated[str | None, typer.Option(help="Default: the only one of the repository.")] = None,
    target: Annotated[Literal["cpu", "gpu", "npu"], typer.Option(help="What the profile is to run on.")] = "cpu",
    max_latency_ms: Annotated[
        float | None, typer.Option(min=0, help="Longest median time of one image, as the manifests have it.")
    ] = None,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="Largest model file.")] = None,
    min_ap: Annotated[float | None, typer.Option(min=0, max=1, help="Lowest average precision, 0 to 1.")] = None,
    build: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Trained network (safetensors): build what is missing from it."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(envvar="DAMOSERVE_DATA", file_okay=False, help="Data set, for --build.")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for the results of steps, for --build.")
    ] = None,
    train_recipe: Annotated[str, typer.Option(help="Training recipe of the fine-tuning, for --build.")] = "default",
    setting: Setting = None,
    openvino: Annotated[
        bool, typer.Option("--openvino", help="Take recipes for OpenVINO into account; --build times it too.")
    ] = False,
) -> None:
    """Say which profiles keep the limits, and recommend one; name or build the missing one. Exit code 1: none does."""
    limits = Limits(max_latency_ms, max_bytes, min_ap)
    with exit_on_error(RepositoryError, RecipeError, ValueError):
        current = _open(Repository(repository), model, target, openvino)
    if build is None:
        _end(current, limits)
    if data is None or work is None:
        raise typer.BadParameter("needs --data and --work", param_hint="--build")
    make = _recipe_builder(_Build(build, data, work, train_recipe, setting or []), current)
    with exit_on_error(RepositoryError, RecipeError):
        while not current.advice(limits).recommended and (likely := current.suggestions(limits)):
            typer.echo(f"nothing keeps the limits yet: building {likely[0].recipe.name}, which {likely[0].reason}")
            make(likely[0].recipe)
    _end(current, limits)


@dataclass(frozen=True)
class _ModelVersion:
    """The profiles of one version, and what could be built beside them for one target."""

    repository: Repository
    model: str
    version: int
    target: Target
    openvino: bool
    refused: set[str] = field(default_factory=set)
    """Recipes that gave no profile."""

    def manifests(self) -> list[Manifest]:
        """Reads the manifests of all targets. Raises RepositoryError."""
        folders = self.repository.profiles(self.model, self.version)
        # One without a manifest is what a killed build left behind, which is to be built again.
        return [folder.read_manifest() for folder in folders if (folder.path / MANIFEST_FILE).exists()]

    def own(self) -> list[Manifest]:
        """Reads the manifests of the target."""
        return [manifest for manifest in self.manifests() if manifest.recipe.target == self.target]

    def advice(self, limits: Limits) -> Advice:
        return decide([as_candidate(manifest) for manifest in self.own()], limits)

    def missing(self) -> list[Recipe]:
        """Recipes of which there is no profile. A folder holds one of each name, whatever its target."""
        taken = {manifest.profile for manifest in self.manifests()} | self.refused
        recipes = bundled_recipes(self.model, self.target, self.openvino)
        return [recipe for recipe in recipes if recipe.name not in taken]

    def suggestions(self, limits: Limits) -> list[Suggestion]:
        return suggest([as_candidate(manifest) for manifest in self.own()], limits, self.missing())


@dataclass(frozen=True)
class _Build:
    checkpoint: Path
    data: Path
    work: Path
    train_recipe: str
    settings: Sequence[str]


def _open(repository: Repository, model: str | None, target: Target, openvino: bool) -> _ModelVersion:
    """Raises ValueError where the repository does not tell which model is meant, or has nothing of it."""
    models = repository.models()
    if model is None and len(models) != 1:
        raise ValueError(f"{repository.root} holds {', '.join(models) or 'no model'}: say which with --model")
    name = model or models[0]
    versions = repository.versions(name)
    return _ModelVersion(repository, name, versions[-1] if versions else 1, target, openvino)


def _recipe_builder(options: _Build, current: _ModelVersion) -> Callable[[Recipe], object]:
    """Prepares a function that builds one recipe; ends the command where that is not possible.

    A recipe that gives no profile is noted as refused: another one may do.
    """
    from damoserve_compress.build.builder import BuildConfig, Builder
    from damoserve_compress.build.errors import BuildError, RecipeFailed
    from damoserve_compress.build.trained_network import read_network

    with exit_on_build_error():
        source, manifests = read_network(options.checkpoint), current.manifests()
        if source.description.model != current.model:
            raise BuildError(f"{options.checkpoint} is of the model {source.description.model}, not {current.model}")
        if any(manifest.source.sha256 != source.sha256 for manifest in manifests):
            raise BuildError(
                f"version {current.version} of {current.model} was built from another checkpoint than "
                f"{options.checkpoint}"
            )
        training = tuning_config(options.train_recipe, options.settings)
        train_set, val_set = read_data(options.data)
        config = BuildConfig(
            checkpoint=options.checkpoint,
            repository=current.repository.root,
            work=options.work,
            data_name=validation_name(options.data),
            thresholds=manifests[0].thresholds if manifests else SERVED,
            version=current.version,
            training=training,
            engines=("onnxruntime", "openvino") if current.openvino else ("onnxruntime",),
            license=manifests[0].license if manifests else None,
            data=origins(options.data, train_set),
        )
        builder = Builder(config, train_set, val_set, typer.echo)

    def make(recipe: Recipe) -> None:
        with exit_on_build_error():
            try:
                builder.build([recipe])
            except RecipeFailed as error:
                typer.echo(error)
                current.refused.add(recipe.name)

    return make


def _end(current: _ModelVersion, limits: Limits) -> NoReturn:
    """Prints what there is to say, and exits with 1 where no profile qualifies."""
    with exit_on_error(RepositoryError, RecipeError):
        advice, manifests, likely = current.advice(limits), current.own(), current.suggestions(limits)
    typer.echo("\n".join(_lines(advice, manifests)) or f"{current.model} has no profile for {current.target}")
    if advice.recommended is not None:
        typer.echo(f"recommended: {advice.recommended.profile}")
        raise typer.Exit(0)
    typer.echo("no profile keeps the limits", err=True)
    for suggestion in likely:
        typer.echo(f"not built yet: {suggestion.recipe.name}, which {suggestion.reason}", err=True)
    if likely:
        typer.echo("build it: the same command with --build CHECKPOINT --data DATA --work WORK", err=True)
    else:
        typer.echo(
            f"no recipe for {current.target} is left that is likely to: loosen a limit, or write a recipe and build it",
            err=True,
        )
    raise typer.Exit(1)


def _lines(advice: Advice, manifests: Sequence[Manifest]) -> list[str]:
    """The lines of the answer: one for each profile, then where the times are from."""
    lines = []
    for verdict in advice.verdicts:
        candidate = verdict.candidate
        said = "; ".join(verdict.faults) or "keeps the limits"
        dominated = f"; dominated by {verdict.dominated_by}" if verdict.dominated_by else ""
        lines.append(
            f"{candidate.profile:12} AP {candidate.ap:.4f}  {candidate.milliseconds:8.2f} ms"
            f"  {candidate.bytes / 1e6:6.2f} MB  {said}{dominated}"
        )
    measured = {
        f"{manifest.latency.runtime}, {manifest.latency.cpu}, {manifest.latency.threads} thread(s)": None
        for manifest in manifests
    }
    return lines + [f"times are of {where}" for where in measured]
