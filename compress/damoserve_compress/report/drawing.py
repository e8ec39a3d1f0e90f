"""Matplotlib figures as SVG that takes the page's ink and has no ground of its own.

Matplotlib is imported where it is used.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from damoserve_profiles.files import replace_file, replace_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK: Final = "#010203"
"""Stands for the page's colour of text; nothing else may have it."""
BLUE, ORANGE, GREY = "#2f81f7", "#d9730d", "#8b949e"
"""Colours that can be told apart, and from the ground, on white and on near-black."""

STYLE: Final[dict[Any, Any]] = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "axes.facecolor": "none",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "damoserve",
}


@contextmanager
def styled() -> Iterator[None]:
    """Whatever is drawn inside looks alike; a decorator too."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        yield


@styled()
def as_svg(figure: "Figure") -> str:
    """An SVG element, the same for the same figure."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    whole = text.getvalue()
    return whole[whole.index("<svg") :].strip().replace(INK, "currentColor")


def on_white(svg: str) -> str:
    """Makes a drawing a file of its own: black on white, wherever it is shown."""
    head, rest = svg.replace("currentColor", "#000000").split(">", 1)
    return f'{head}><rect width="100%" height="100%" fill="#ffffff"/>{rest}\n'


def save(figure: "Figure", path: Path) -> None:
    """Writes an SVG or PNG file, by the path's suffix, black on white."""
    if path.suffix == ".svg":
        replace_text(path, on_white(as_svg(figure)))
    else:
        replace_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=160, facecolor="white"))
