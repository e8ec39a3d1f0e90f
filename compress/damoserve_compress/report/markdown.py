"""A report as Markdown, its pictures in files beside it."""

import re
from collections.abc import Sequence
from pathlib import Path

from damoserve_compress.report.document import Block, Code, Document, Drawing, Gallery, Paragraph, Photograph, Table
from damoserve_compress.report.drawing import on_white
from damoserve_profiles.files import replace_file, replace_text

IMAGES = "images"


def write_markdown(document: Document, path: Path) -> None:
    """Writes the text to `path`, the pictures to the folder `images` beside it, which may exist."""
    images = path.parent / IMAGES
    images.mkdir(parents=True, exist_ok=True)
    parts = [f"# {_escape(document.title)}"]
    for section in document.sections:
        parts += [f"## {_escape(section.title)}", *(_block(block, images) for block in section.blocks)]
    replace_text(path, "\n\n".join(parts) + "\n")


def _block(block: Block, images: Path) -> str:
    match block:
        case Paragraph():
            return _escape(block.text)
        case Code():
            return f"```\n{block.text}\n```"
        case Table():
            marks = ["---"] * block.names + ["--:"] * (len(block.header) - block.names)
            return "\n".join([_row(block.header), f"| {' | '.join(marks)} |", *(_row(row) for row in block.rows)])
        case Gallery():
            return "\n\n".join(_picture(picture, images) for picture in block.pictures)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_escape(cell) for cell in cells)} |"


def _picture(picture: Drawing | Photograph, images: Path) -> str:
    if isinstance(picture, Drawing):
        path = images / f"{picture.name}.svg"
        replace_text(path, on_white(picture.svg))
    else:
        path = images / f"{picture.name}.jpg"
        jpeg = picture.jpeg
        replace_file(path, lambda temporary: temporary.write_bytes(jpeg))
    caption = _escape(picture.caption)
    return f"![{caption}]({IMAGES}/{path.name})\n\n{caption}"


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_<>|\[\]#])", r"\\\1", text)
