"""The report on a model's profiles: measured anew, explained, and drawn, as Markdown and as one HTML page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from damoserve_compress.advise import steps_of
from damoserve_compress.datasets import Dataset
from damoserve_compress.naive import NaiveRow
from damoserve_compress.report import making, sections
from damoserve_compress.report.document import Document, Paragraph, Section
from damoserve_compress.report.drawing import save
from damoserve_compress.report.errors import ReportError
from damoserve_compress.report.html import write_html
from damoserve_compress.report.markdown import write_markdown
from damoserve_compress.report.measure import from_manifests, read_profiles, validate
from damoserve_compress.report.plots import pareto_plot, points
from damoserve_compress.report.samples import sample_images
from damoserve_compress.report.work import Work, read_naive, read_work
from damoserve_profiles.manifest import Manifest

__all__ = ["PLOTS", "ReportConfig", "ReportError", "make_report"]

PLOTS = (".png", ".svg")


@dataclass(frozen=True)
class ReportConfig:
    """What to report on, and where to."""

    repository: Path
    command: str
    """The command line, to be repeated."""
    model: str | None = None
    """None: the only one of the repository."""
    reference: str = "fp32"
    """Profile that speed, and where there are images accuracy, is compared with."""
    work: Path | None = None
    """Work folder of the build."""
    naive: Path | None = None
    """What `damoserve-compress naive --json` wrote."""
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
    work = read_work(config.work, manifests) if config.work else Work()
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
        sections.results(measured, elsewhere, validated),
        sections.front(measured, naive),
        sections.beside_article(measured),
    ]
    parts += [sections.naive_settings(naive)] if naive else []
    parts += [making.pruning(work)] if work.prunings else []
    parts += [making.quantisation(work), making.calibration(work)] if work.quantisations else []
    if dataset is not None:
        report("drawing detections")
        parts.append(
            Section("Detections", [Paragraph(sections.DRAWN), *sample_images(measured, dataset, config.images)])
        )
    parts += [making.environment(measured), making.repeat(config.command, manifests, work)]
    missing = _missing(config, dataset, work)
    parts += [making.left_out(missing)] if missing else []
    first = manifests[0]
    document = Document(f"{first.model}, version {first.version}: profiles measured", parts)
    write_markdown(document, config.out / "report.md")
    write_html(document, config.out / "report.html")


def _naive(path: Path, reference: Manifest) -> Sequence[NaiveRow]:
    if steps_of(reference.recipe):
        raise ReportError(
            f"naive settings have their speed against the float network: they cannot be shown beside speeds against "
            f"{reference.profile}; with --naive, --reference takes a profile that is neither cut nor in 8 bits"
        )
    return read_naive(path, reference.source)


def _missing(config: ReportConfig, dataset: Dataset | None, work: Work) -> list[str]:
    """What the report has no section for, and why."""
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
