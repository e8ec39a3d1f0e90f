"""Composing a report: what is measured and drawn for it, in which order, and what is left out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from damoserve_compress.advise import recipe_steps
from damoserve_compress.datasets import Dataset
from damoserve_compress.naive import NaiveRow
from damoserve_compress.report import provenance, results
from damoserve_compress.report.build_records import BuildRecords, read_build_records, read_naive
from damoserve_compress.report.document import Document, Paragraph, Section
from damoserve_compress.report.drawing import save
from damoserve_compress.report.errors import ReportError
from damoserve_compress.report.html import write_html
from damoserve_compress.report.markdown import write_markdown
from damoserve_compress.report.measure import from_manifests, read_profiles, validate
from damoserve_compress.report.plots import pareto_plot, points
from damoserve_compress.report.samples import sample_images
from damoserve_profiles.manifest import Manifest

PLOTS = (".png", ".svg")


@dataclass(frozen=True)
class ReportConfig:
    """Settings of a report: what it is on, and where it is written."""

    repository: Path
    command: str
    """The command line, to be repeated."""
    model: str | None = None
    """The name of the model; None stands for the only one of the repository."""
    reference: str = "fp32"
    """Profile that speed, and where there are images accuracy, is compared with."""
    work: Path | None = None
    """Work folder of the build."""
    naive: Path | None = None
    """A file that `damoserve-compress naive --json` wrote."""
    rounds: int = 100
    images: int = 3
    """Pictures with detections."""
    out: Path | None = None
    """Folder for `report.md`, its `images/`, and `report.html`."""
    plot: Path | None = None
    """File for the Pareto plot alone, by its suffix one of `PLOTS`."""


def make_report(config: ReportConfig, dataset: Dataset | None, report: Callable[[str], None] = print) -> None:
    """Measures the profiles and writes what the configuration asks for.

    `dataset` are the validation images: without them accuracy is that of the manifests, and no picture is shown. Raises
    ReportError, RepositoryError for files that are not those of their manifest, RuntimeMissing for a profile whose
    engine is not installed, OSError where the files cannot be written.
    """
    if config.plot is not None and config.plot.suffix not in PLOTS:
        raise ReportError(f"{config.plot}: a plot is written as {' or '.join(PLOTS)}")
    profiles, elsewhere = read_profiles(config.repository, config.model, config.reference)
    manifests = [profile.manifest for profile in profiles]
    naive = _naive(config.naive, manifests[0]) if config.naive else []
    work = read_build_records(config.work, manifests) if config.work else BuildRecords()
    for folder in (config.out, config.plot and config.plot.parent):
        if folder is not None:  # now, for an unusable one would waste what is measured
            folder.mkdir(parents=True, exist_ok=True)
    report(f"timing {len(profiles)} profiles, {config.rounds} interleaved runs of each")
    measured = from_manifests(profiles, config.rounds)
    if dataset is not None:
        measured = validate(measured, dataset, report)
    if config.plot is not None:
        shown, _ = points(measured, naive)
        save(pareto_plot(shown, config.reference), config.plot)
    if config.out is None:
        return
    validated = None if dataset is None else f"{len(dataset)} validation images"
    parts = [
        results.overview(measured, elsewhere, validated),
        results.front(measured, naive),
        results.beside_article(measured),
    ]
    parts += [results.naive_settings(naive)] if naive else []
    parts += [provenance.pruning(work)] if work.prunings else []
    parts += [provenance.quantisation(work), provenance.calibration(work)] if work.quantisations else []
    if dataset is not None:
        report("drawing detections")
        parts.append(
            Section("Detections", [Paragraph(results.DRAWN), *sample_images(measured, dataset, config.images)])
        )
    parts += [provenance.environment(measured), provenance.repeat(config.command, manifests, work)]
    missing = _missing(config, dataset, work)
    parts += [provenance.left_out(missing)] if missing else []
    first = manifests[0]
    document = Document(f"{first.model}, version {first.version}: profiles measured", parts)
    write_markdown(document, config.out / "report.md")
    write_html(document, config.out / "report.html")


def _naive(path: Path, reference: Manifest) -> Sequence[NaiveRow]:
    if recipe_steps(reference.recipe):
        raise ReportError(
            f"naive settings have their speed against the float network: they cannot be shown beside speeds against "
            f"{reference.profile}; with --naive, --reference takes a profile that is neither cut nor in 8 bits"
        )
    return read_naive(path, reference.source)


def _missing(config: ReportConfig, dataset: Dataset | None, work: BuildRecords) -> list[str]:
    """The lines that say for what the report has no section, and why."""
    texts = []
    if dataset is None:
        texts.append("Detections, and accuracy measured anew: give --data.")
    if config.naive is None:
        texts.append("Naive settings: give --naive the file of damoserve-compress naive --json.")
    where = "give --work" if config.work is None else f"{config.work} has nothing of these profiles"
    if not work.prunings:
        texts.append(f"Pruning: {where}.")
    if not work.quantisations:
        texts.append(f"Quantisation and calibration set: {where}.")
    return texts
