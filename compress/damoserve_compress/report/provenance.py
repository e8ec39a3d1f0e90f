"""The sections of a report about how its profiles were made, where they were measured, and how to repeat it."""

import importlib.metadata
import os
import platform
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain

import yaml

from damoserve_compress.quantise import QuantisationReport
from damoserve_compress.report.build_records import BuildRecords, PruningRecord
from damoserve_compress.report.document import Block, Code, Drawing, Gallery, Paragraph, Section, Table, slug
from damoserve_compress.report.drawing import as_svg
from damoserve_compress.report.measure import MeasuredProfile
from damoserve_compress.report.plots import SHOWN_GROUPS, group_plot, stage_plot
from damoserve_profiles.manifest import Manifest

NONE = "–"
PACKAGES = (
    "damoserve",
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "numpy",
    "opencv-python-headless",
    "hotcoco",
)


def pruning(work: BuildRecords) -> Section:
    """The section on pruning: what was cut, and how sensitive each stage is."""
    blocks = list(chain.from_iterable(map(_pruned, work.prunings)))
    return Section("Pruning", blocks)


def _pruned(pruned: PruningRecord) -> Iterator[Block]:
    name = pruned.stage.folder.name
    made = f"made {', '.join(pruned.profiles)}" if pruned.profiles else "no profile of this repository was made from it"
    yield Paragraph(f"{name}: {made}; {_duration(pruned.stage.seconds)}.")
    rows = []
    for number, cut in enumerate(pruned.cuts, 1):
        before, after = (sum(counts[side] for counts in cut.channels.values()) for side in (0, 1))
        share = NONE if cut.left is None or cut.wanted is None else f"{cut.left:.3f} ({cut.wanted:.3f})"
        rows.append(
            [str(number), f"{before} to {after}", f"{cut.parameters / 1e6:.2f} M", f"{cut.macs / 1e9:.2f} G", share]
        )
    yield Table(["cut", "channels", "parameters", "MACs", "share left (wanted)"], rows)
    drawings = [
        Drawing(
            f"{name}-cut-{number}",
            f"Sensitivity of the stages before cut {number}",
            as_svg(stage_plot(cut.sensitivity)),
        )
        for number, cut in enumerate(pruned.cuts, 1)
        if cut.sensitivity
    ]
    if drawings:
        yield Gallery(drawings)
    else:
        yield Paragraph("Its cuts are uniform: the sensitivity of the stages was not measured.")


def quantisation(work: BuildRecords) -> Section:
    """The section on quantisation: how the 8-bit graphs were made."""
    blocks: list[Block] = []
    for number, (profile, report) in enumerate(work.quantisations.items(), 1):
        blocks += _quantised(f"quantise-{number}-{slug(profile)}", profile, report)
    return Section("Quantisation", blocks)


def _quantised(name: str, profile: str, report: QuantisationReport) -> Iterator[Block]:
    methods = ", ".join(
        f"{count} by {method}" for method, count in Counter(row.method for row in report.tensors).most_common()
    )
    bits = 7 if report.reduce_range else 8
    yield Paragraph(
        f"{profile}: {report.operators} operators, weights in {bits} bits, ranges of {len(report.tensors)} activations "
        f"({methods}), biases of {len(report.bias_shifts)} convolutions corrected. {_kept(report)}"
    )
    if report.operator_times:
        rows = [[row.operators, f"{row.milliseconds:.2f} ms"] for row in report.operator_times]
        yield Table(["operators in 8 bits", "time"], rows)
    if report.decisions:
        yield Table(
            ["convolution tried in float", "AP before", "AP after", "decision"],
            [
                [
                    row.group,
                    f"{100 * row.ap_before:.2f}",
                    f"{100 * row.ap_after:.2f}",
                    "stays in float" if row.kept else "back to 8 bits",
                ]
                for row in report.decisions
            ],
        )
    if report.sensitivity:
        shown = min(SHOWN_GROUPS, len(report.sensitivity))
        caption = f"{profile}: the {shown} most harmful of {len(report.sensitivity)} convolutions, each alone in 8 bits"
        yield Gallery([Drawing(name, caption, as_svg(group_plot(report)))])
        if any(row.ap is not None for row in report.sensitivity):
            rows = [
                [row.group, f"{row.sqnr_db:.1f}", f"{100 * row.ap:.2f}"]
                for row in report.sensitivity
                if row.ap is not None
            ]
            yield Table(["convolution alone in 8 bits", "signal to noise, dB", "AP x 100"], rows)


def _kept(report: QuantisationReport) -> str:
    """Says what the budget led to."""
    if report.float_ap is None or report.ap is None:
        return "The recipe has no budget: nothing stays in float."
    count = len(report.float_groups)
    floating = f"{count or 'No'} convolution{'s' if count > 1 else ''}"
    lost = 100 * (report.float_ap - report.ap)
    return (
        f"{floating} had to stay in float: on the held-out training images AP went from {100 * report.float_ap:.2f} to "
        f"{100 * report.ap:.2f} ({-lost:+.2f})."
    )


def calibration(work: BuildRecords) -> Section:
    """The section on the images that the ranges were taken from."""
    rows = [
        [profile, str(report.calibration.images), report.calibration.sha256]
        for profile, report in work.quantisations.items()
    ]
    note = (
        "Training images as the network gets them, without those held out; the hash is over all pixels, in their order."
    )
    return Section("Calibration set", [Table(["profile", "images", "SHA-256"], rows, names=3), Paragraph(note)])


def environment(measured: Sequence[MeasuredProfile]) -> Section:
    """The section on the machine that the report was measured on."""
    latency = measured[0].timing.latency
    versions = [(name, _version(name)) for name in PACKAGES]
    rows = [
        ["processor", latency.cpu],
        ["instruction set", latency.instruction_set],
        ["processors that this process may use", str(len(os.sched_getaffinity(0)))],
        ["system", f"{platform.system()} {platform.release()}, {platform.machine()}"],
        ["Python", platform.python_version()],
        *([name, version] for name, version in versions if version),
    ]
    built = {
        (m.latency.cpu, m.latency.instruction_set, m.latency.runtime) for m in (item.manifest for item in measured)
    }
    notes = [
        f"The manifests have times of {cpu} ({instructions}), {runtime}."
        for cpu, instructions, runtime in sorted(built)
    ]
    return Section("Environment", [Table(["what", "value"], rows, names=2), *map(Paragraph, notes)])


def repeat(command: str, manifests: Sequence[Manifest], work: BuildRecords) -> Section:
    """The commands and recipes that lead here again."""
    first, recipes = manifests[0], [f"{manifest.profile}.yaml" for manifest in manifests]
    source = first.source
    build = ["damoserve-compress", "build", source.checkpoint, "--data", "DATA", "--work", "WORK"]
    build += ["--repository", "REPOSITORY", "--version", str(first.version), "--score", f"{first.thresholds.score:g}"]
    build += chain.from_iterable(("--recipe", recipe) for recipe in recipes)
    build += ["--openvino"] if any(manifest.latencies for manifest in manifests) else []
    blocks: list[Block] = [
        Paragraph("This report:"),
        Code(command),
        Paragraph(f"The profiles, from {source.checkpoint} (SHA-256 {source.sha256}):"),
        Code(shlex.join(build)),
        *map(Paragraph, _beyond_recipes(manifests)),
    ]
    for manifest, recipe in zip(manifests, recipes, strict=True):
        steps = manifest.recipe.model_dump(exclude={"name"}, exclude_defaults=True)
        blocks += [
            Paragraph(f"{recipe}, as the profile was built:"),
            Code(yaml.safe_dump(steps, sort_keys=False).strip()),
        ]
    if work.seconds:
        rows = [
            [profile, *(_duration(steps[step]) if step in steps else NONE for step in ("prune", "export", "quantise"))]
            for profile, steps in work.seconds.items()
        ]
        blocks += [Paragraph("What the steps took:"), Table(["profile", "prune", "export", "quantise"], rows)]
    return Section("How to repeat it", blocks)


def _beyond_recipes(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The lines on what the profiles depend on that no recipe holds."""
    prunings = [(manifest.recipe.prune, manifest.source.cut_sha256) for manifest in manifests if manifest.recipe.prune]
    for name, digest in dict.fromkeys((prune.network, digest) for prune, digest in prunings if prune.network):
        known = f"SHA-256 {digest}" if digest else "its manifest is older than the record of its SHA-256"
        yield f"The network {name} ({known}), which was cut before, lies beside it."
    if any(prune.fine_tune for prune, _ in prunings):
        yield "Cut networks are trained by a training recipe too: give the --train-recipe and --set of the build."


def left_out(missing: Sequence[str]) -> Section:
    """The section on what the report does not have, and what it would take."""
    return Section("Left out", [Paragraph(text) for text in missing])


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
