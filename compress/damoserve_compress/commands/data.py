"""`damoserve-compress check`: data sets."""

import json
from typing import Annotated

import typer

from damoserve_compress.commands.options import DataFolder, check_data, exit_on_error


def check(
    data: DataFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print every finding, as JSON.")] = False,
) -> None:
    """Report everything that is wrong with a data set; exit with 1 where it cannot be trained on."""
    from damoserve_compress.datasets import DatasetError

    with exit_on_error(DatasetError):
        _, _, report = check_data(data)
    typer.echo(json.dumps(report.as_dict(), indent=2) if as_json else str(report))
    if report.errors:
        raise typer.Exit(1)
