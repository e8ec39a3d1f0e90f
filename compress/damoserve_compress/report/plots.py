"""The plots of a report."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

from damoserve_compress.advise import on_front
from damoserve_compress.measure.bootstrap import Interval
from damoserve_compress.naive import NaiveRow
from damoserve_compress.prune.sensitivity import StageSensitivity
from damoserve_compress.quantise import QuantisationReport
from damoserve_compress.report.drawing import BLUE, GREY, ORANGE, styled
from damoserve_compress.report.measure import MeasuredProfile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN_GROUPS = 30
"""The number of the most harmful convolutions that a sensitivity plot shows."""
FAR = 3.0
"""Settings by so many points of AP below the worst profile would flatten the picture: they are left out."""

_MARKS = "^vsDP*Xo"


@dataclass(frozen=True)
class Point:
    """A profile or naive setting in a plot of accuracy."""

    name: str
    ap: tuple[float, float, float]
    """The average precision in points, and the ends of its interval."""
    speed: tuple[float, float, float]
    """Ratio: median and quartiles."""
    megabytes: float
    ours: bool = True


def points(measured: Sequence[MeasuredProfile], naive: Sequence[NaiveRow]) -> tuple[list[Point], list[str]]:
    """Gives the points to plot, and the names of those that would be too far below."""
    shown = [_profile_point(item) for item in measured]
    lowest = min(point.ap[0] for point in shown) - FAR
    others = [_naive_point(row) for row in naive if row.difference is not None]
    return (
        shown + [point for point in others if point.ap[0] >= lowest],
        [f"{point.name} (AP {point.ap[0]:.1f})" for point in others if point.ap[0] < lowest],
    )


def _profile_point(item: MeasuredProfile) -> Point:
    change, speed = item.difference, item.timing.speed
    return Point(
        item.name,
        _in_points(item.ap, Interval(change.ap, change.lower, change.upper) if change else Interval(0, 0, 0)),
        (speed.median, speed.lower, speed.upper),
        item.manifest.model_bytes / 1e6,
    )


def _naive_point(row: NaiveRow) -> Point:
    assert row.difference is not None
    return Point(
        f"{row.name}, {row.engine}",
        _in_points(row.metrics.ap, row.difference.ap),
        (row.speed.median, row.speed.lower, row.speed.upper),
        row.bytes / 1e6,
        ours=False,
    )


def _in_points(ap: float, change: Interval) -> tuple[float, float, float]:
    """An AP, and the interval of its difference around it: that of a bootstrap may leave the difference itself out."""
    below, above = min(change.lower - change.value, 0.0), max(change.upper - change.value, 0.0)
    return 100 * ap, 100 * (ap + below), 100 * (ap + above)


@styled()
def speed_plot(shown: Sequence[Point], reference: str) -> "Figure":
    """Accuracy against speed."""
    figure, [axes] = _figure(1)
    _draw_speed(axes, shown, reference)
    return figure


@styled()
def bytes_plot(shown: Sequence[Point]) -> "Figure":
    """Accuracy against the size of the file."""
    figure, [axes] = _figure(1)
    _draw_bytes(axes, shown)
    return figure


@styled()
def pareto_plot(shown: Sequence[Point], reference: str) -> "Figure":
    """Both side by side."""
    figure, [left, right] = _figure(2)
    _draw_speed(left, shown, reference)
    _draw_bytes(right, shown)
    right.set_ylabel("")
    return figure


@styled()
def stage_plot(rows: Sequence[StageSensitivity]) -> "Figure":
    """Plots the rise of the loss when one stage alone is cut, the most sensitive stage first."""
    ordered = sorted(rows, key=lambda row: -max(row.rises))
    figure, axes = _rows([_short(row.stage) for row in ordered])
    places = range(len(ordered))
    for index, ratio in enumerate(ordered[0].ratios):
        rises = [row.rises[index] for row in ordered]
        colour = (GREY, BLUE, ORANGE)[index % 3]
        axes.scatter(rises, places, color=colour, marker=_MARKS[index], s=20, zorder=3, label=f"{ratio:.0%} cut")
    axes.set_xlabel("rise of the loss before any training")
    axes.legend(fontsize=8, loc="lower right")
    return figure


@styled()
def group_plot(report: QuantisationReport) -> "Figure":
    """Plots how much each convolution disturbs the head's outputs when it alone is in 8 bits."""
    rows = report.sensitivity[:SHOWN_GROUPS]
    figure, axes = _rows([_short(row.group) for row in rows])
    colours = [ORANGE if row.group in report.float_groups else BLUE for row in rows]
    axes.scatter([row.sqnr_db for row in rows], range(len(rows)), color=colours, s=18, zorder=3)
    axes.set_xlabel("signal to noise of the head's outputs, dB")
    return figure


def _short(name: str) -> str:
    """Shortens the name of a stage or convolution by what all names have."""
    return name.removeprefix("network.").replace("block_list.", "").removesuffix(".rbr_reparam")


def _rows(names: Sequence[str]) -> "tuple[Figure, Axes]":
    """A plot with a row for each name, from top to bottom."""
    figure, [axes] = _figure(1, height=0.8 + 0.18 * len(names))
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=True)
    return figure, axes


def _figure(columns: int, height: float = 3.8) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6 * columns, height))
    return figure, [figure.add_subplot(1, columns, column + 1) for column in range(columns)]


def _draw_speed(axes: "Axes", shown: Sequence[Point], reference: str) -> None:
    _draw(axes, shown, [point.speed for point in shown], [-point.speed[0] for point in shown])
    axes.set_xlabel(f"times as fast as {reference}")


def _draw_bytes(axes: "Axes", shown: Sequence[Point]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    sizes = [point.megabytes for point in shown]
    _draw(axes, shown, [(size, size, size) for size in sizes], sizes)
    axes.set_xlabel("file, MB")


def _draw(
    axes: "Axes", shown: Sequence[Point], across: Sequence[tuple[float, float, float]], costs: Sequence[float]
) -> None:
    """`across` are value, lower and upper end of each point; `costs` what of it is better lower."""
    front = on_front([(-point.ap[0], cost) for point, cost in zip(shown, costs, strict=True)])
    best = sorted((x[0], point.ap[0]) for point, x, first in zip(shown, across, front, strict=True) if first)
    axes.plot(*zip(*best, strict=True), color=BLUE, linewidth=1.2, linestyle="--", zorder=1)
    marks = cycle(_MARKS)
    for point, (x, x_low, x_high), first in zip(shown, across, front, strict=True):
        ap, low, high = point.ap
        axes.errorbar(
            x,
            ap,
            xerr=[[x - x_low], [x_high - x]],
            yerr=[[ap - low], [high - ap]],
            fmt="o" if point.ours else next(marks),
            color=BLUE if first else GREY if point.ours else ORANGE,
            label=None if point.ours else point.name,
            markersize=6,
            elinewidth=1,
            capsize=2.5,
            zorder=3 if point.ours else 2,
        )
    axes.margins(x=0.12, y=0.12)
    axes.set_ylabel("AP x 100, with 95 % interval")
    axes.grid(visible=True)
    _name(axes, [(point.name, x[0], point.ap[0]) for point, x in zip(shown, across, strict=True) if point.ours])
    if any(not point.ours for point in shown):
        # In the plot's lower part there is room: naive settings are the least accurate.
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.3 * (high - low), high)
        axes.legend(fontsize=8, loc="lower right")


def _name(axes: "Axes", named: Sequence[tuple[str, float, float]]) -> None:
    """Writes the names beside the points, towards the middle."""
    axes.get_xlim()  # has the limits computed that the transformation needs
    for name, x, y in named:
        right = axes.transLimits.transform(axes.transScale.transform((x, y)))[0] > 0.6
        axes.annotate(
            name,
            (x, y),
            xytext=(-7, -13) if right else (7, 5),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=9,
        )
