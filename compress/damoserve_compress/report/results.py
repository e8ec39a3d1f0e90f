"""The sections of a report with results: what was measured, beside what others have."""

from collections.abc import Iterator, Sequence
from itertools import chain

from damoserve_compress.measure.bootstrap import Interval
from damoserve_compress.measure.timing import Ratio
from damoserve_compress.naive import NaiveRow
from damoserve_compress.report import article
from damoserve_compress.report.document import Block, Drawing, Gallery, Paragraph, Section, Table
from damoserve_compress.report.drawing import as_svg
from damoserve_compress.report.measure import MeasuredProfile
from damoserve_compress.report.plots import bytes_plot, points, speed_plot
from damoserve_profiles.manifest import AccuracyDifference, Manifest

NONE = "–"
DRAWN = (
    "Some validation images, spread evenly over the set, with what each profile finds as it is served by default. "
    "Thick blue boxes are of objects that the reference does not find, crossed red ones of objects that it alone finds."
)


def overview(measured: Sequence[MeasuredProfile], elsewhere: Sequence[Manifest], validated: str | None) -> Section:
    """The table of everything measured; `validated` names the images that accuracy was measured on here."""
    first = measured[0]
    rows = [
        [
            item.name,
            f"{100 * item.ap:.2f}",
            _change(item.difference),
            f"{item.manifest.parameters / 1e6:.2f} M",
            f"{item.manifest.macs / 1e9:.2f} G",
            f"{item.manifest.model_bytes / 1e6:.2f} MB",
            f"{item.timing.latency.median_ms:.2f} ms",
            _ratio(item.timing.speed),
            item.engine,
        ]
        for item in measured
    ]
    header = ["profile", "AP x 100", "difference", "parameters", "MACs", "file", "time", "speed", "engine"]
    reference = next((item.difference.reference for item in measured if item.difference), None)
    accuracy = measured[0].manifest.accuracy
    lines = [
        f"AP is COCO's, on the {accuracy.images} images of {accuracy.dataset}, as the manifests have it."
        if validated is None
        else f"AP is COCO's, on {validated}, measured for this report.",
        "No difference was measured."
        if reference is None
        else f"Differences are in points against {reference}, with the 95 % interval of a paired bootstrap over the "
        "images. An interval that holds 0 shows no difference.",
        f"Time is the median of {first.timing.latency.runs} runs of one image, from the image tensor to the candidate "
        f"boxes, on one thread. Speed is against {first.name} in ONNX Runtime: median of the ratios of interleaved "
        "runs, with their quartiles.",
        *_moved(measured, validated),
        *(
            f"{manifest.profile} is for the target {manifest.recipe.target} and was not measured on this processor."
            for manifest in elsewhere
        ),
    ]
    return Section("Results", [Table(header, rows), *map(Paragraph, lines), *_engines(measured)])


def _moved(measured: Sequence[MeasuredProfile], validated: str | None) -> Iterator[str]:
    """The lines on accuracy that came out otherwise than in the manifest."""
    for item in measured if validated else ():
        promised = item.manifest.accuracy.ap
        if abs(item.ap - promised) >= 0.0005:
            yield (
                f"{item.name} scores {100 * item.ap:.2f} here, while its manifest has {100 * promised:.2f} on "
                f"{item.manifest.accuracy.dataset}: other images, or a processor that computes otherwise."
            )


def _engines(measured: Sequence[MeasuredProfile]) -> list[Block]:
    """Every profile in every engine, where there is more than one."""
    names = list(dict.fromkeys(chain.from_iterable(item.timings for item in measured)))
    if len(names) < 2:
        return []
    rows = [
        [item.name]
        + [
            f"{timing.latency.median_ms:.2f} ms, {_ratio(timing.speed)}" if timing else NONE
            for timing in map(item.timings.get, names)
        ]
        for item in measured
    ]
    return [Paragraph("The same in every installed engine:"), Table(["profile", *names], rows)]


def beside_article(measured: Sequence[MeasuredProfile]) -> Section:
    """The article's table and ours, both as shares of their float row."""
    first = measured[0].manifest
    ours = {item.name: item for item in measured}
    float_row = article.PUBLISHED[0]
    rows = []
    for row in article.PUBLISHED:
        item = ours.get(row.profile)
        rows.append(
            [
                row.profile,
                f"{row.parameters:.1f} M ({row.parameters / float_row.parameters:.2f})",
                f"{row.operations:.1f} G ({row.operations / float_row.operations:.2f})",
                f"{article.AP + row.change:.1f}" + (f" ({row.change:+.1f})" if row.change else ""),
                f"{row.speed:.1f}x" if row.speed else NONE,
                *(_shares(item, first) if item else [NONE] * 5),
            ]
        )
    published = [f"published: {name}" for name in ("parameters", "operations", "AP", "speed")]
    here = [f"measured: {name}" for name in ("parameters", "MACs", "file", "AP difference", "speed")]
    notes = (
        f"Columns under “published” are those of DAMO-YOLO-{article.VARIANT} as published: computed, not measured. "
        "They are the float row's times 0.8 (pruned), a quarter of it (int8), or both. In fact 8 bits change neither "
        "the number of parameters nor that of operations, but their bytes and time. The article has no speed for the "
        "rows between, and no intervals.",
        f"Columns under “measured” are those of {first.model}, variant {first.variant} at {first.input.width} x "
        f"{first.input.height} pixels, from this report; numbers in parentheses are shares of {first.profile}.",
    )
    return Section(
        "The article's table beside ours", [Table(["profile", *published, *here], rows), *map(Paragraph, notes)]
    )


def _shares(item: MeasuredProfile, first: Manifest) -> list[str]:
    manifest = item.manifest
    return [
        f"{manifest.parameters / 1e6:.2f} M ({manifest.parameters / first.parameters:.2f})",
        f"{manifest.macs / 1e9:.2f} G ({manifest.macs / first.macs:.2f})",
        f"{manifest.model_bytes / 1e6:.2f} MB ({manifest.model_bytes / first.model_bytes:.2f})",
        _change(item.difference),
        _ratio(item.timing.speed),
    ]


def front(measured: Sequence[MeasuredProfile], naive: Sequence[NaiveRow]) -> Section:
    """Accuracy against what it costs."""
    shown, left_out = points(measured, naive)
    explained = (
        "Blue and joined: the Pareto front, what nothing else dominates. Upright bars are 95 % "
        "intervals of the difference in AP, bars across the quartiles of the speed."
    )
    if any(not point.ours for point in shown):
        explained += " Orange are the naive settings, as far as they are not on the front."
    if left_out:
        explained += f" Left out, because far below: {'; '.join(left_out)}."
    reference = measured[0].name
    drawings = [
        Drawing("pareto-speed", "AP against speed", as_svg(speed_plot(shown, reference))),
        Drawing("pareto-bytes", "AP against the size of the file", as_svg(bytes_plot(shown))),
    ]
    return Section("Pareto plots", [Gallery(drawings), Paragraph(explained)])


def naive_settings(rows: Sequence[NaiveRow]) -> Section:
    """The section on naive compression: what the usual settings give."""
    table = Table(
        ["setting", "engine", "AP x 100", "difference from float", "time", "speed", "file"],
        [
            [
                row.name,
                row.engine,
                f"{100 * row.metrics.ap:.2f}",
                str(row.difference.ap) if row.difference else NONE,
                f"{row.milliseconds:.2f} ms",
                _ratio(row.speed),
                f"{row.bytes / 1e6:.2f} MB",
            ]
            for row in rows
        ],
        names=2,
    )
    note = "Measured by damoserve-compress naive, in a run of its own: compare speeds, not milliseconds."
    return Section("Naive settings", [table, Paragraph(note)])


def _change(difference: AccuracyDifference | None) -> str:
    return str(Interval(difference.ap, difference.lower, difference.upper)) if difference else NONE


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.median:.2f}x ({ratio.lower:.2f} to {ratio.upper:.2f})"
