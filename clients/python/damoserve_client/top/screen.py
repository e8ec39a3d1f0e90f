"""Draws a reading, for a terminal of 80 columns or more; one model of four profiles takes 24 lines."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from damoserve_client.top.graphs import Bar, Flow, Sparkline
from damoserve_client.top.reading import Latency, ProfileReading, Reading, TierReading

BY_PROFILE = "by profile"
"""Instead of a tier, for requests that name their profile."""
NOTHING = Text("-", "dim")
OUTCOME_COLOURS = {"in_time": "green", "late": "yellow"}
STATE_COLOURS = {"active": "green", "loading": "yellow", "failed": "red"}


class History:
    """The rate and the p95 of the last minute; None where there was no answer or nothing to measure."""

    def __init__(self, interval: float) -> None:
        """`interval` is the time from one reading to the next, in seconds."""
        self.length = max(1, round(60 / interval))
        self.rates: deque[float | None] = deque(maxlen=self.length)
        self.p95: deque[float | None] = deque(maxlen=self.length)

    def add(self, reading: Reading | None) -> None:
        self.rates.append(None if reading is None else reading.rate)
        self.p95.append(None if reading is None else reading.latency.p95)


@dataclass(frozen=True)
class Picture:
    """The screen of one moment. Without a history there are no sparklines; `trouble` says why the reading is an old
    one."""

    url: str
    reading: Reading | None
    history: History | None = None
    trouble: str | None = None

    def __rich__(self) -> Group:
        parts: list[RenderableType] = [_header(self.url, self.reading)]
        if self.reading is None and self.trouble is None:
            parts.append(Text("measuring ...", "dim"))
        if self.trouble is not None:
            parts.append(Text(f" {self.trouble} ", "bold white on red"))
        if self.reading is not None:
            parts += [Padding(section, (1, 0, 0, 0)) for section in _sections(self.reading, self.history)]
        return Group(*parts)


def _sections(reading: Reading, history: History | None) -> Iterator[RenderableType]:
    yield _traffic(reading, history)
    if reading.tiers:
        yield _tiers(reading.tiers)
    if reading.profiles:
        yield _profiles(reading.profiles, several_models=len(reading.versions) > 1)
    device = _line(_device(reading))
    if reading.stages:
        bar = Bar(reading.stages)
        yield Group(bar, bar.legend(), device)
    else:
        yield device


def _header(url: str, reading: Reading | None) -> Table:
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right")
    name = Text("damoserve", "bold cyan", no_wrap=True, overflow="ellipsis")
    if reading is not None and reading.process.version is not None:
        name.append(f" {reading.process.version}", "not bold")
    grid.add_row(name, Text(url, "dim"))
    if reading is not None:
        models = (f"{model}/{version}" for model, version in reading.versions.items())
        grid.add_row(Text(", ".join(models), "bold"), _line(_process(reading)))
    return grid


def _process(reading: Reading) -> Iterator[tuple[str, str]]:
    process = reading.process
    if process.uptime is not None:
        yield "up", duration(process.uptime)
    if process.cpu is not None:
        yield "cpu", f"{process.cpu:.2f} cores"
    if process.memory is not None:
        yield "memory", f"{process.memory / 1e6:.0f} MB"


def _traffic(reading: Reading, history: History | None) -> Group:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(no_wrap=True, justify="right", style="bold", min_width=6)
    lines = {"req/s": f"{reading.rate:.1f}", "p95 ms": _milliseconds(reading.latency.p95)}
    for (label, value), graph in zip(lines.items(), _sparklines(history), strict=True):
        grid.add_row(label, value, graph)
    parts: list[RenderableType] = [grid]
    if any(reading.outcomes.values()):
        parts.append(_outcomes(reading))
    if reading.refusals:
        parts.append(_line((reason, f"{rate:.1f} /s") for reason, rate in reading.refusals.items()))
    return Group(*parts)


def _sparklines(history: History | None) -> tuple[RenderableType, RenderableType]:
    if history is None:
        return "", ""
    return (
        Sparkline(tuple(history.rates), history.length, "cyan"),
        Sparkline(tuple(history.p95), history.length, "magenta"),
    )


def _outcomes(reading: Reading) -> Flow:
    """The ends of the requests as shares, without those that did not occur."""
    return Flow(
        [
            Text.assemble(
                (f"{outcome} ".replace("_", " "), "dim"),
                (f"{rate / reading.rate:.1%}", OUTCOME_COLOURS.get(outcome, "red")),
            )
            for outcome, rate in reading.outcomes.items()
            if rate
        ]
    )


def _tiers(tiers: Iterable[TierReading]) -> Table:
    table = _table("tier", "objective", ["in time", "AP", ""])
    for tier in tiers:
        table.add_row(
            Text(BY_PROFILE if tier.tier == "none" else tier.tier),  # in a `str` rich would look for markup
            NOTHING if tier.objective is None else f"{tier.objective * 1e3:g} ms",
            f"{tier.rate:.1f}",
            *_latencies(tier.latency, tier.objective),
            _share(tier.in_time),
            _accuracy(tier.accuracy),
            style="" if tier.rate else "dim",
        )
    return table


def _profiles(profiles: Iterable[ProfileReading], several_models: bool) -> Table:
    table = _table("profile", "state", ["batch", "AP", "agreement"])
    for profile in profiles:
        table.add_row(
            Text(f"{profile.model}/{profile.profile}" if several_models else profile.profile),
            Text(profile.state, STATE_COLOURS.get(profile.state, "dim")),
            f"{profile.rate:.1f}",
            *_latencies(profile.latency, None),
            NOTHING if profile.batch is None else f"{profile.batch:.2f}",
            _accuracy(profile.accuracy),
            _agreement(profile),
            style="" if profile.rate else "dim",
        )
    return table


def _table(name: str, second: str, last: list[str]) -> Table:
    """The columns of both tables stand below one another."""
    table = Table(box=None, padding=0, pad_edge=False, expand=True, header_style="bold dim")
    table.add_column(name, ratio=1, no_wrap=True, overflow="ellipsis", min_width=12)
    table.add_column(second, width=10, justify="right", no_wrap=True)
    for column, width in zip(["req/s", "p50 ms", "p95 ms", "p99 ms", *last], [8, 8, 8, 8, 8, 7, 11], strict=True):
        table.add_column(column, width=width, justify="right", no_wrap=True)
    return table


def _latencies(latency: Latency, objective: float | None) -> list[Text]:
    return [
        Text(_milliseconds(seconds), "yellow" if seconds and objective and seconds > objective else "")
        for seconds in (latency.p50, latency.p95, latency.p99)
    ]


def _device(reading: Reading) -> Iterator[tuple[str, str]]:
    device = reading.device
    if reading.in_flight is not None:
        yield "in flight", f"{reading.in_flight:.0f}"
    if device.queued is not None:
        yield "queue", f"{device.queued:.0f}"
    if device.decoding is not None:
        yield "decoding", f"{device.decoding:.0f}"
    if device.workers is not None:
        busy = "" if device.busy is None else f"{device.busy:.0f}/"
        used = "" if device.utilisation is None else f" ({device.utilisation:.0%} busy)"
        yield "workers", f"{busy}{device.workers:.0f}{used}"
    if device.restarts:
        yield "replaced", f"{device.restarts:.0f}"
    if device.leased is not None and device.slots is not None:
        most = "" if device.high_water is None else f" (at most {device.high_water:.0f})"
        yield "pool", f"{device.leased:.0f}/{device.slots:.0f}{most}"


def _line(items: Iterable[tuple[str, str]]) -> Flow:
    """Names with their values."""
    return Flow([Text.assemble((f"{label} ", "dim"), value) for label, value in items])


def _agreement(profile: ProfileReading) -> Text | str:
    """Returns the agreement as it is now, and as it was when the profile was built."""
    if profile.agreement is None:
        return NOTHING
    built = "" if profile.expected_agreement is None else f"/{_accuracy(profile.expected_agreement)}"
    return f"{_accuracy(profile.agreement)}{built}"


def _accuracy(value: float | None) -> Text | str:
    return NOTHING if value is None else f"{value:.3f}".removeprefix("0")


def _share(value: float | None) -> Text | str:
    return NOTHING if value is None else f"{value:.1%}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def duration(seconds: float) -> str:
    """Returns a duration in its two largest units: `3 d 4 h`."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days} d {h} h"
    if hours:
        return f"{hours} h {m} min"
    return f"{m} min {s} s" if minutes else f"{s} s"
