"""The chart and the words about a load while it runs."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from damoserve_client.playground.controls import chart, markup
from damoserve_client.playground.figures import TIME_COLOUR
from damoserve_client.playground.load import BIN_SECONDS, SECONDS, Interval, Load, intervals, percentile

# Seen on both grounds.
RULE = {"lineStyle": {"color": "#8884"}}
# An empty bar: nobody answered.
NOBODY = {"color": "transparent", "borderColor": TIME_COLOUR, "borderWidth": 1.5, "borderType": "dashed"}


class LoadView:
    """Made inside the element that holds it."""

    def __init__(self) -> None:
        self._words = markup("p", "Nothing has run yet.", "load-words").props("role=status")
        self._chart = chart(_options((), {}), "Latency and calls by profile over the seconds of the load")
        self._chart.set_visibility(False)

    def show(self, load: Load, profiles: Mapping[str, str], running: bool) -> None:
        """`profiles` says the colour of each."""
        self._chart.set_visibility(True)
        self._chart.options.update(_options(intervals(load.calls), profiles))
        self._chart.update()
        # Read out at the end only, not twice a second.
        self._words.props["aria-busy"] = str(running).lower()
        self._words.set_content(_words(load, running))


def _words(load: Load, running: bool) -> str:
    answered = sorted(call.latency for call in load.calls if call.profile)
    p50, p95 = percentile(answered, 0.5), percentile(answered, 0.95)
    words = f"{load.callers} callers {'are calling' if running else 'have called'}: {len(answered)} answers"
    if p50 is not None and p95 is not None:
        words += f", median {1e3 * p50:.1f} ms, 95 of 100 within {1e3 * p95:.1f} ms"
    if load.last_error:
        kinds = ", ".join(f"{count} {kind}" for kind, count in load.errors.most_common())
        words += f". Without an answer: {kinds}; the last one, because {load.last_error.message}"
    return f"{escape(words)}."


def _options(bins: Sequence[Interval], profiles: Mapping[str, str]) -> dict[str, Any]:
    """Above the latencies, below what served, both over the same seconds."""
    lines = [
        _line("median", "solid", [(each.begin, each.p50) for each in bins]),
        _line("95 of 100", "dotted", [(each.begin, each.p95) for each in bins]),
    ]
    bars = [
        _bar(name, {"color": colour}, [(each.begin, each.calls_by_profile.get(name, 0)) for each in bins])
        for name, colour in profiles.items()
    ]
    bars.append(_bar("no answer", NOBODY, [(each.begin, each.failed) for each in bins]))
    return {
        "animation": False,
        "grid": [_grid(top=44, height=120), _grid(top=208, height=84)],
        "legend": [
            {"data": [line["name"] for line in lines], "left": 48, "top": 4, "selectedMode": False},
            {"data": [bar["name"] for bar in bars], "left": 48, "top": 174, "selectedMode": False},
        ],
        "xAxis": [_seconds(0, False), _seconds(1, True)],
        "yAxis": [_scale(0, " ms", 3), _scale(1, "", 2)],
        "series": lines + bars,
    }


def _grid(top: int, height: int) -> dict[str, Any]:
    return {"left": 64, "right": 16, "top": top, "height": height}


def _seconds(grid: int, labelled: bool) -> dict[str, Any]:
    label = {"show": labelled, "formatter": "{value} s", "showMaxLabel": False}
    # What was under way at the end is answered a little later.
    axis = {"type": "value", "gridIndex": grid, "min": 0, "max": SECONDS + BIN_SECONDS, "axisLabel": label}
    return {**axis, "splitLine": {"show": False}, "axisLine": RULE, "containShape": False}


def _scale(grid: int, unit: str, splits: int) -> dict[str, Any]:
    axis = {"type": "value", "gridIndex": grid, "min": 0, "axisLabel": {"formatter": f"{{value}}{unit}"}}
    return {**axis, "splitNumber": splits, "splitLine": RULE}


def _line(name: str, kind: str, points: Sequence[tuple[float, float | None]]) -> dict[str, Any]:
    data = [
        [begin + BIN_SECONDS / 2, None if seconds is None else round(1e3 * seconds, 2)] for begin, seconds in points
    ]
    line = {
        "type": "line",
        "name": name,
        "xAxisIndex": 0,
        "yAxisIndex": 0,
        "data": data,
        "symbolSize": 5,
        "symbol": "circle",
    }
    return {**line, "color": TIME_COLOUR, "lineStyle": {"width": 2.5, "type": kind}}


def _bar(name: str, style: Mapping[str, Any], points: Sequence[tuple[float, int]]) -> dict[str, Any]:
    data = [[begin + BIN_SECONDS / 2, count] for begin, count in points]
    return {
        **{"type": "bar", "name": name, "xAxisIndex": 1, "yAxisIndex": 1, "data": data, "stack": "calls"},
        **{"itemStyle": dict(style), "barWidth": 14},
    }
