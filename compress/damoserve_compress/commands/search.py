"""`damoserve-compress search`: a structure for a budget."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from damoserve_compress.commands.options import exit_on_error
from damoserve_profiles.files import replace_text
from damoserve_profiles.imaging import Size

if TYPE_CHECKING:
    from damoserve_compress.network.structures import Structure
    from damoserve_compress.search import Budget, CostModel, Costs, LatencyModel, Search


class NeckWidths(StrEnum):
    """The rule for the widths of the neck's outputs."""

    FIXED = "fixed"
    SCALED = "scaled"


Limit = Annotated[float | None, typer.Option(min=0, help="At most so many. Default: as many as the reference.")]


def search(  # noqa: PLR0913, PLR0917
    out: Annotated[Path, typer.Option(dir_okay=False, help="Structure file (.yaml) to write, for `train --variant`.")],
    reference: Annotated[str, typer.Option(help="Variant or structure file to start from.")] = "P",
    size: Annotated[int | None, typer.Option(min=32, help="Side of the input in pixels, a multiple of 32.")] = None,
    classes: Annotated[int, typer.Option(min=1, help="Labels of the detector, of which its head's costs depend.")] = 80,
    macs: Limit = None,
    parameters: Limit = None,
    depth: Limit = None,
    latency: Annotated[bool, typer.Option(help="Whether the latency counts, which has to be measured.")] = True,
    latency_ms: Limit = None,
    table: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="Latency table; gaps are measured. Default: latency.json beside OUT."),
    ] = None,
    neck: Annotated[
        NeckWidths, typer.Option(help="Outputs of the neck: as wide as the reference's, or in ratio to the backbone's.")
    ] = NeckWidths.FIXED,
    multiple: Annotated[int, typer.Option(min=2, help="An even number of which new widths are multiples.")] = 16,
    population: Annotated[int, typer.Option(min=1, help="Structures that are kept.")] = 512,
    evaluations: Annotated[int, typer.Option(min=1, help="Steps of the search.")] = 200_000,
    minutes: Annotated[float, typer.Option(min=0, help="Stop searching after so long, too.")] = math.inf,
    seed: int = 0,
) -> None:
    """Search for the structure with the highest entropy score within a budget; goes on where it was stopped."""
    from damoserve_compress.network.structures import VARIANTS, find_structure, write_structure
    from damoserve_compress.search import CostModel, Search, SearchConfig, Space, check_start

    if out.suffix != ".yaml" or out.stem in VARIANTS:
        raise typer.BadParameter(f"{out.name} must end in .yaml and not be a variant's name", param_hint="--out")
    if size is not None and size % 32:
        raise typer.BadParameter(f"{size} is no multiple of 32", param_hint="--size")
    if latency_ms is not None and not latency:
        raise typer.BadParameter("cannot be limited with --no-latency", param_hint="--latency-ms")
    with exit_on_error(ValueError, OSError):
        found = find_structure(reference)
        start = replace(found, input_size=size or found.input_size)
        space = Space(start, multiple=multiple, neck=neck.value)
        out.parent.mkdir(parents=True, exist_ok=True)
        side = Size(start.input_size, start.input_size)
        limits = {"macs": macs, "parameters": parameters, "depth": depth, "latency_ms": latency_ms}
        counted = CostModel(side, classes)
        check_start(start, _budget(counted(start), limits), counted)  # before minutes of measuring
        model = _latency_model(table or out.with_name("latency.json"), start, side, classes) if latency else None
        costs = replace(counted, latency=model)
        config = SearchConfig(space, _budget(costs(start), limits), population, seed)
        job = Search(config, costs, out.with_name(f"{out.stem}.state.json"))
        _run(job, evaluations, minutes)
        best = replace(job.best.structure, name=out.stem)
        rows = _rows([start, best], costs)
        write_structure(out, best)
        record = json.dumps(_record(job, rows), indent=1)
        replace_text(out.with_name(f"{out.stem}.search.json"), record + "\n")
    Console().print(_table(rows, config.budget))
    typer.echo(f"{job.evaluations} steps in {job.seconds:.0f} s: {out}")


@dataclass(frozen=True)
class Row:
    """A structure beside others; latencies in milliseconds."""

    name: str
    score: float
    costs: "Costs"
    measured_ms: float | None


@contextmanager
def _bar(what: str) -> Iterator[tuple[Progress, Any]]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield bar, bar.add_task(what, total=None)


def _latency_model(path: Path, start: "Structure", size: Size, classes: int) -> "LatencyModel":
    from damoserve_compress.search.measure import latency_model

    with _bar("Measuring convolutions") as (bar, task):
        return latency_model(
            path, start, size, classes, lambda done, total: bar.update(task, completed=done, total=total)
        )


def _budget(costs: "Costs", limits: Mapping[str, float | None]) -> "Budget":
    from damoserve_compress.search import Budget

    given = {name: limit for name, limit in limits.items() if limit is not None}
    own = {name: cost for name, cost in asdict(costs).items() if cost is not None}
    return Budget(**{**own, **given})


def _run(job: "Search", evaluations: int, minutes: float) -> None:
    with _bar("Searching") as (bar, task):

        def show(job: "Search") -> None:
            text = f"Searching, best score {job.best.score:.2f}, {len(job.population)} kept"
            bar.update(task, description=text, completed=job.evaluations, total=evaluations)

        job.run(evaluations, minutes * 60, show)


def _rows(structures: "list[Structure]", costs: "CostModel") -> list[Row]:
    from damoserve_compress.search import entropy_score
    from damoserve_compress.search.measure import measure_networks

    measured: list[float | None] = [None] * len(structures)
    if costs.latency is not None:
        timings = measure_networks(structures, costs.size, costs.num_classes)
        measured = [costs.latency.table.milliseconds(timing) for timing in timings]
    return [
        Row(structure.name, entropy_score(structure), costs(structure), milliseconds)
        for structure, milliseconds in zip(structures, measured, strict=True)
    ]


def _record(job: "Search", rows: list[Row]) -> dict[str, Any]:
    """The record of the search that found a structure."""
    return {
        "found": asdict(rows[-1]),
        "reference": asdict(rows[0]),
        "evaluations": job.evaluations,
        "seconds": round(job.seconds, 1),
        "search": job.identity(),
        "machine": job.costs.latency.table.machine.model_dump() if job.costs.latency else None,
    }


def _table(rows: list[Row], budget: "Budget") -> Table:
    table = Table("")
    for row in rows:
        table.add_column(row.name, justify="right")
    table.add_column("budget", justify="right")
    table.add_row("entropy score", *(f"{row.score:.2f}" for row in rows), "")
    table.add_row("parameters", *(f"{row.costs.parameters:,}" for row in rows), f"{budget.parameters:,.0f}")
    table.add_row("MACs, millions", *(f"{row.costs.macs / 1e6:.1f}" for row in rows), f"{budget.macs / 1e6:.1f}")
    table.add_row("depth", *(str(row.costs.depth) for row in rows), f"{budget.depth:.0f}")
    if all(row.measured_ms is not None for row in rows):
        table.add_row("predicted ms", *(f"{row.costs.latency_ms:.2f}" for row in rows), f"{budget.latency_ms:.2f}")
        table.add_row("measured ms", *(f"{row.measured_ms:.2f}" for row in rows), "")
    return table
