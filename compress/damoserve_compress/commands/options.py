"""Options, errors and data that the commands share.

The modules of this package are read for every `--help`: torch comes only when there is something to do.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress

from damoserve_profiles.faults import describe_faults
from damoserve_profiles.manifest import DataSource, Thresholds
from damoserve_profiles.repository import BUNDLED, RepositoryError, missing_bundle

if TYPE_CHECKING:
    from damoserve_compress.datasets.check import CheckReport
    from damoserve_compress.datasets.pictures import PictureDataset, Scan
    from damoserve_compress.training.config import TrainConfig

DataFolder = Annotated[
    Path,
    typer.Option(
        envvar="DAMOSERVE_DATA", exists=True, file_okay=False, help="Folder of a data set: COCO or Pascal VOC."
    ),
]


def existing(repository: Path) -> Path:
    """A repository that is to be read."""
    if not repository.is_dir():
        raise typer.BadParameter(missing_bundle(repository) or f"there is no folder {repository}")
    return repository


def _not_missing(repository: Path) -> Path:
    """One that may be new; that of the bundled models is made by an install only."""
    return existing(repository) if repository == BUNDLED else repository


RepositoryFolder = Annotated[Path, typer.Option(file_okay=False, help="Repository of models.", callback=_not_missing)]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Replace a field of the recipe, e.g. augment.mosaic=0.5."),
]
License = Annotated[
    str | None, typer.Option("--license", help="Licence of the model, for the manifests: an SPDX expression.")
]
Device = Annotated[str | None, typer.Option(help="Torch's name of it. Default: a GPU where there is one.")]


SERVED: Final = Thresholds(score=0.5, nms_iou=0.7, max_detections=100)
"""The thresholds that profiles are served with by default, unless their builder says otherwise."""


@contextmanager
def exit_on_error(*kinds: type[Exception]) -> Iterator[None]:
    """Ends the command with one line for the errors that a user can cause."""
    try:
        yield
    except kinds as error:
        fault = describe_faults(error) if isinstance(error, ValidationError) else error
        typer.echo(f"Error: {fault}", err=True)
        raise typer.Exit(1) from error


@contextmanager
def exit_on_build_error() -> Iterator[None]:
    """Ends the command with one line for whatever can stop a build."""
    from damoserve_compress.build.errors import BuildError
    from damoserve_compress.export import ExportError
    from damoserve_compress.prune import PruneError
    from damoserve_compress.quantise import QuantisationError
    from damoserve_compress.targets import TargetError
    from damoserve_compress.training.checkpoint import TrainingError

    steps = BuildError, PruneError, TrainingError, ExportError, TargetError, QuantisationError
    with exit_on_error(*steps, RepositoryError, ValueError, OSError):
        yield


def validation_name(folder: Path) -> str:
    """The name of a data set's validation images in manifests."""
    return f"{folder.resolve().name}/val"


def origins(folder: Path, *sets: "PictureDataset") -> tuple[DataSource, ...]:
    """Returns what manifests say of the data: what the annotations tell of themselves, else the folder's name alone."""
    named = [found.origin for found in sets if found.origin is not None]
    return tuple(dict.fromkeys(named)) or (DataSource(name=folder.resolve().name),)


def read_data(folder: Path) -> "tuple[PictureDataset, PictureDataset]":
    """The training and the validation set, checked; warnings are printed in short.

    Raises DatasetError, whose message is the whole report, where anything is wrong that stops a training.
    """
    from damoserve_compress.datasets import DatasetError
    from damoserve_compress.datasets.pictures import PictureDataset

    train, val, report = check_data(folder)
    if report.errors:
        raise DatasetError(f"{folder} cannot be used:\n{report}")
    for kind, findings in report.by_kind().items():
        typer.echo(f"Warning: {kind.title}: {len(findings)}, first {findings[0]}", err=True)
    return PictureDataset(train), PictureDataset(val)


def check_data(folder: Path) -> "tuple[Scan, Scan, CheckReport]":
    """Reads a folder of data, and reports what is wrong with it. Raises LayoutError."""
    from damoserve_compress.datasets.check import check
    from damoserve_compress.datasets.folder import scan_folder

    train, val = scan_folder(folder)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("Checking pictures")
        report = check(train, val, lambda done, total: bar.update(task, completed=done, total=total))
    return train, val, report


def tuning_config(recipe: str, settings: Sequence[str] | None, device: str | None = None) -> "TrainConfig":
    """The settings for training cut networks, as far as a training recipe has them. Raises TrainConfigError.

    What a recipe says in vain, for it is one of whole trainings, is left aside; whoever sets it wants it done.
    """
    from damoserve_compress.build.pruning import OVERRIDDEN
    from damoserve_compress.training.config import TrainConfigError

    for setting in settings or ():
        if reason := OVERRIDDEN.get(setting.partition("=")[0].partition(".")[0]):
            raise TrainConfigError(f"--set {setting} cannot be had for cut networks: {reason}")
    return training_config(recipe, {}, settings, device)


def training_config(
    recipe: str, named: Mapping[str, Any], settings: Sequence[str] | None = None, device: str | None = None
) -> "TrainConfig":
    """The recipe, with what the command line says otherwise. Raises TrainConfigError."""
    from damoserve_compress.training.config import read_train_config
    from damoserve_compress.training.device import choose_device, choose_precision

    given = {name: value for name, value in {**named, "device": device}.items() if value is not None}
    chosen = read_train_config(recipe, {"device": choose_device()}, given, settings or []).device
    return read_train_config(recipe, {"device": chosen, "precision": choose_precision(chosen)}, given, settings or [])
