"""The parts of a report before it is written as Markdown or HTML: plain text, nothing of it is markup."""

import re
from collections.abc import Sequence
from dataclasses import dataclass


def slug(name: str) -> str:
    """A name as a part of a file's name, of a link and of an id."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name)


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells; all columns but the first `names` hold figures."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    text: str


@dataclass(frozen=True)
class Drawing:
    """A drawing of lines and text, as the text of an SVG element whose ink is `currentColor`."""

    name: str
    """The name of the drawing's file, without suffix; unique in a report."""
    caption: str
    svg: str


@dataclass(frozen=True)
class Photograph:
    """A picture as JPEG."""

    name: str
    caption: str
    jpeg: bytes


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side, where there is room."""

    pictures: Sequence[Drawing | Photograph]


Block = Paragraph | Table | Code | Gallery


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    title: str
    sections: Sequence[Section]
