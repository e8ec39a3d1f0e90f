"""`damoserve-compress fetch`: weights and data sets from elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from damoserve_compress.commands.options import exit_on_error

if TYPE_CHECKING:
    from damoserve_compress.fetch import ReportProgress


def fetch(
    source: Annotated[
        str,
        typer.Argument(
            help="A path, an http(s) address, modelscope:OWNER/NAME/FILE or hf:OWNER/NAME/FILE, with @REVISION if "
            "need be; or bccd, the data set."
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write; the folder for a data set.")],
    sha256: Annotated[str | None, typer.Option(help="Refuse a file with another hash; bccd has its own.")] = None,
) -> None:
    """Get a file, going on where an earlier try stopped, or a data set ready for --data."""
    from damoserve_compress.fetch import FetchError, sources
    from damoserve_compress.fetch.bccd import fetch_bccd

    with exit_on_error(FetchError, OSError), _progress(out.name) as report:
        found = fetch_bccd(out, report) if source == "bccd" else sources.fetch(source, out, sha256, report)
    typer.echo(f"{out}: SHA-256 {found}")


@contextmanager
def _progress(name: str) -> "Iterator[ReportProgress]":
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
