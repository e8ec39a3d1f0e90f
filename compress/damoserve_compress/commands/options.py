"""What the commands share.

The modules of this package are read for every `--help`: torch comes only when there is something to do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from damoserve_compress.datasets.coco import CocoDataset

DataFolder = Annotated[
    Path,
    typer.Option(
        envvar="DAMOSERVE_DATA", exists=True, file_okay=False, help="Folder with train.json, val.json and images/."
    ),
]
RepositoryFolder = Annotated[Path, typer.Option(file_okay=False, help="Repository of models.")]


@contextmanager
def told(*kinds: type[Exception]) -> Iterator[None]:
    """Ends the command with one line for the errors that a user can cause."""
    try:
        yield
    except kinds as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error


def read_data(folder: Path) -> "tuple[CocoDataset, CocoDataset]":
    """The training and the validation set. Raises DatasetError."""
    from damoserve_compress.datasets.coco import CocoDataset

    images = folder / "images"
    return CocoDataset(folder / "train.json", images), CocoDataset(folder / "val.json", images)
