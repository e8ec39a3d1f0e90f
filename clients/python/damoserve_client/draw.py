"""Pictures with the detections drawn in, and sheets of several such pictures."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from damoserve_client.images import to_rgb, upright
from damoserve_client.labels import place
from damoserve_client.terminal import plain
from damoserve_client.types import Box, Detection

# Dark and saturated, so that they stand out on light pictures and carry white text.
CLASS_COLOURS = ("#c2185b", "#1a4fba", "#0b7a3b", "#6a1b9a", "#00707a", "#b3261e")
_MARGIN = 12
# Around the text of a label, in pixels.
_PADDING = 2

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet and the line above it."""

    caption: str
    picture: Image.Image


def colour_of(label_id: int) -> str:
    """The colour of a class, always the same one."""
    return CLASS_COLOURS[label_id % len(CLASS_COLOURS)]


def annotate(content: bytes, detections: Sequence[Detection]) -> Image.Image:
    """The picture as a viewer displays it, RGB, with the box of every detection, and its label where there is room.

    `content` is that of an image file. The first detections have the first choice of room, so the best come first.
    """
    with Image.open(io.BytesIO(content)) as source:
        picture = to_rgb(upright(source))
    draw = ImageDraw.Draw(picture)
    width = max(2, round(min(picture.size) / 240))
    font = ImageFont.load_default(size=max(11, min(picture.size) / 36))
    for detection in detections:
        box = detection.box
        draw.rectangle((box.x_min, box.y_min, box.x_max, box.y_max), outline=colour_of(detection.label_id), width=width)
    texts = [f"{plain(detection.label)} {detection.score:.2f}" for detection in detections]
    sizes = [_size(draw, text, font) for text in texts]
    places = place([_whole(detection.box) for detection in detections], sizes, picture.size)
    for detection, text, where in zip(detections, texts, places, strict=True):
        if where is not None:
            _tag(draw, where, text, colour_of(detection.label_id), font)
    return picture


def sheet(panels: Sequence[Panel]) -> Image.Image:
    """The pictures side by side, in as many rows as make the sheet about square, each under its caption."""
    columns = math.ceil(math.sqrt(len(panels)))
    rows = math.ceil(len(panels) / columns)
    width = max(panel.picture.width for panel in panels)
    height = max(panel.picture.height for panel in panels)
    size = max(12, width // 30)
    head = 2 * size
    canvas = Image.new(
        "RGB", (columns * (width + _MARGIN) + _MARGIN, rows * (height + head + _MARGIN) + _MARGIN), "white"
    )
    draw = ImageDraw.Draw(canvas)
    for index, panel in enumerate(panels):
        x = _MARGIN + index % columns * (width + _MARGIN)
        y = _MARGIN + index // columns * (height + head + _MARGIN)
        font = _fitting_font(panel.caption, width, size)
        draw.text((x, y + head // 2), panel.caption, fill="black", font=font, anchor="lm")
        canvas.paste(panel.picture, (x, y + head))
    return canvas


def _whole(box: Box) -> Box:
    """Rounds a box to whole pixels, so that labels side by side do not share a column."""
    return Box(round(box.x_min), round(box.y_min), round(box.x_max), round(box.y_max))


def _size(draw: ImageDraw.ImageDraw, text: str, font: Font) -> tuple[int, int]:
    """Returns width and height of the label on its ground, in whole pixels."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    return math.ceil(right - left) + 2 * _PADDING, math.ceil(bottom - top) + 2 * _PADDING


def _tag(draw: ImageDraw.ImageDraw, where: Box, text: str, colour: str, font: Font) -> None:
    left, top, _, _ = draw.textbbox((0, 0), text, font=font)
    # A rectangle of Pillow's includes its last row and column.
    draw.rectangle((where.x_min, where.y_min, where.x_max - 1, where.y_max - 1), fill=colour)
    draw.text((where.x_min + _PADDING - left, where.y_min + _PADDING - top), text, fill="white", font=font)


def _fitting_font(text: str, width: int, size: int) -> Font:
    wanted = ImageFont.load_default(size=size)
    return ImageFont.load_default(size=min(size, size * width / max(1.0, wanted.getlength(text))))
