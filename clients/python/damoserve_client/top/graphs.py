"""Graphs of one line, as wide as the terminal lets them be."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

GAP = "  "
HEIGHTS = "▁▂▃▄▅▆▇█"
FILLS = "█▓▒░"
"""Neighbours in a bar differ even without colours."""
COLOURS = ("blue", "cyan", "magenta", "yellow", "green", "red", "white")


@dataclass(frozen=True)
class Sparkline:
    """The values, the latest at the right; None leaves a gap. The highest is a full block, and 0 the lowest."""

    values: Sequence[float | None]
    length: int
    """Number of values that there will be at most; they take a cell each where there is room."""
    colour: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        size = math.ceil(self.length / options.max_width)
        cells = fold(self.values, size)
        top = max((value for value in cells if value is not None), default=0.0)
        yield Text("".join(_block(value, top) for value in cells).rjust(math.ceil(self.length / size)), self.colour)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(10, options.max_width), min(self.length, options.max_width))


@dataclass(frozen=True)
class Bar:
    """The parts of a whole, side by side, in proportion."""

    parts: Mapping[str, float]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bar = Text()
        for index, cells in enumerate(share_out(list(self.parts.values()), options.max_width)):
            bar.append(FILLS[index % len(FILLS)] * cells, COLOURS[index % len(COLOURS)])
        yield bar

    def legend(self) -> "Flow":
        """Each part with its seconds as milliseconds."""
        items = [Text("mean ms", "bold dim")]
        for index, (name, seconds) in enumerate(self.parts.items()):
            fill = FILLS[index % len(FILLS)], COLOURS[index % len(COLOURS)]
            items.append(Text.assemble(fill, (f" {name} ", "dim"), f"{seconds * 1e3:.1f}"))
        return Flow(items)


@dataclass(frozen=True)
class Flow:
    """Items one after the other; a line ends only between two of them."""

    items: Sequence[Text]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = Text()
        for item in self.items:
            if line and line.cell_len + len(GAP) + item.cell_len > options.max_width:
                yield line
                line = Text()
            line.append(GAP if line else "").append(item)
        yield line

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        widths = [item.cell_len for item in self.items]
        whole = sum(widths) + len(GAP) * max(0, len(widths) - 1)
        return Measurement(min(max(widths, default=0), options.max_width), min(whole, options.max_width))


def fold(values: Sequence[float | None], size: int) -> list[float | None]:
    """The highest of every `size` neighbours, counted from the latest."""
    groups = [values[max(0, end - size) : end] for end in range(len(values), 0, -size)]
    return [max((value for value in group if value is not None), default=None) for group in reversed(groups)]


def share_out(values: Sequence[float], cells: int) -> list[int]:
    """Returns how many of the cells each value gets, so that none is lost to rounding."""
    total = math.fsum(values)
    if not total:
        return [0] * len(values)
    ends = [round(cells * value / total) for value in itertools.accumulate(values)]
    return [end - start for start, end in itertools.pairwise([0, *ends])]


def _block(value: float | None, top: float) -> str:
    if value is None:
        return " "
    return HEIGHTS[round(value / top * (len(HEIGHTS) - 1))] if top else HEIGHTS[0]
