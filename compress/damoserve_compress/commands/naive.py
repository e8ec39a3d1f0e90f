"""`damoserve-compress naive`: what the usual settings give."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from damoserve_compress.commands.options import DataFolder, exit_on_error, read_data
from damoserve_profiles.files import replace_text

if TYPE_CHECKING:
    from damoserve_compress.naive import NaiveRow


def naive(
    checkpoint: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Trained network (safetensors).")],
    data: DataFolder,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of every graph.")] = 100,
    output: Annotated[
        Path | None, typer.Option("--json", dir_okay=False, help="File to write the results to, too.")
    ] = None,
) -> None:
    """Measure default quantisation and pruning without recovery, to compare profiles with."""
    from damoserve_compress.build.errors import BuildError
    from damoserve_compress.build.trained_network import read_network
    from damoserve_compress.datasets.cache import CachedDataset
    from damoserve_compress.export import ExportError
    from damoserve_compress.naive import measure_naive
    from damoserve_compress.prune import PruneError

    with exit_on_error(BuildError, ExportError, PruneError, ValueError, OSError), TemporaryDirectory() as work:
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
        train_set, val_set = (CachedDataset(part) for part in read_data(data))
        source = read_network(checkpoint, train_set, val_set)
        found = measure_naive(source, (train_set, val_set), Path(work), rounds, lambda text: typer.echo(text, err=True))
        if output is not None:
            replace_text(output, json.dumps(asdict(found), indent=2) + "\n")
    Console().print(_table(found.rows))


def _table(rows: "Sequence[NaiveRow]") -> Table:
    table = Table("setting", "engine")
    for column in ("AP x 100", "against float", "speed", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            row.engine,
            f"{100 * row.metrics.ap:.2f}",
            "" if row.difference is None else str(row.difference.ap),
            f"{row.speed.median:.2f}x ({row.speed.lower:.2f} to {row.speed.upper:.2f})",
            f"{row.bytes / 1e6:.2f}",
        )
    return table
