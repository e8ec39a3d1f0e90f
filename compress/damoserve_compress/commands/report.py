"""`damoserve-compress report`: what a model's profiles are worth, on paper."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from damoserve_compress.commands.options import existing, exit_on_error, read_data
from damoserve_profiles.repository import BUNDLED, RepositoryError


def report(  # noqa: PLR0913, PLR0917
    repository: Annotated[
        Path, typer.Argument(file_okay=False, help="Repository of models.", callback=existing)
    ] = BUNDLED,
    model: Annotated[str | None, typer.Option(help="Default: the only one of the repository.")] = None,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder for report.md, its images, and report.html.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(dir_okay=False, help="File for the Pareto plot alone, .png or .svg.")
    ] = None,
    work: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="Work folder of the build.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="DAMOSERVE_DATA",
            exists=True,
            file_okay=False,
            help="Data set: accuracy is measured anew, and shown.",
        ),
    ] = None,
    naive: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="What naive --json wrote, to compare with.")
    ] = None,
    reference: Annotated[str, typer.Option(help="Profile that the others are compared with.")] = "fp32",
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of every profile.")] = 100,
    images: Annotated[int, typer.Option(min=1, help="Validation images whose detections are shown.")] = 3,
) -> None:
    """Measure a model's profiles anew and write the report: Markdown, one HTML page, or the Pareto plot alone."""
    if out is None and plot is None:
        raise typer.BadParameter("say where to write: --out FOLDER, --plot FILE or both", param_hint="--out")
    from damoserve_compress.datasets.cache import CachedDataset
    from damoserve_compress.report import ReportConfig, make_report

    options = {"model": model, "out": out, "plot": plot, "work": work, "data": data, "naive": naive}
    given = [f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    command = ["damoserve-compress report", shlex.quote(str(repository)), *given]
    command += [f"--reference {shlex.quote(reference)}", f"--rounds {rounds}", f"--images {images}"]
    with exit_on_error(RepositoryError, ValueError, OSError):
        dataset = CachedDataset(read_data(data)[1]) if data else None
        config = ReportConfig(
            repository=repository,
            command=" ".join(command),
            model=model,
            reference=reference,
            work=work,
            naive=naive,
            rounds=rounds,
            images=images,
            out=out,
            plot=plot,
        )
        make_report(config, dataset, lambda text: typer.echo(text, err=True))
    typer.echo("\n".join(str(path) for path in (out and out / "report.html", plot) if path))
