"""Pictures with the detections drawn in, and sheets of several such pictures."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import ExifTags, Image, ImageDraw, ImageFont

from damoserve_client.types import Detection

# Dark and saturated, so that they stand out on light pictures and carry white text.
_COLOURS = ("#c2185b", "#1a4fba", "#0b7a3b", "#8a4b08", "#6a1b9a", "#00707a", "#b3261e", "#37474f")
_MARGIN = 12

# How a picture is turned to its display, by its EXIF orientation (CIPA DC-008, 4.6.5.1); 1 is as stored.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet and the line above it."""

    caption: str
    picture: Image.Image


def colour_of(label_id: int) -> str:
    """The colour of a class, always the same one."""
    return _COLOURS[label_id % len(_COLOURS)]


def annotate(content: bytes, detections: Sequence[Detection]) -> Image.Image:
    """The picture as a viewer displays it, RGB, with a box, the label and the score of every detection."""
    with Image.open(io.BytesIO(content)) as source:
        picture = to_rgb(upright(source))
    draw = ImageDraw.Draw(picture)
    width = max(2, round(min(picture.size) / 240))
    font = ImageFont.load_default(size=max(11, min(picture.size) / 36))
    for detection in detections:
        box = detection.box
        draw.rectangle((box.x_min, box.y_min, box.x_max, box.y_max), outline=colour_of(detection.label_id), width=width)
    # Above all boxes, and the best on top.
    for detection in reversed(detections):
        corner = (detection.box.x_min, detection.box.y_min)
        _tag(draw, corner, f"{detection.label} {detection.score:.2f}", colour_of(detection.label_id), font)
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


def upright(image: Image.Image) -> Image.Image:
    """The picture as a viewer displays it; the same object where it is stored so, or its EXIF cannot be read.

    `ImageOps.exif_transpose` also writes the EXIF anew, which fails on values of an odd type.
    """
    image.load()  # a PNG may keep its EXIF behind the pixels
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever damaged EXIF leads to: SyntaxError, struct.error, ValueError
        return image
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, as the server sees the picture."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip everything above 255 to white
        image = image.point(lambda value: value / 256)
    return image.convert("RGB")


def _tag(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    colour: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Writes above the corner, or below it where the picture ends."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0.0, min(corner[0], draw.im.size[0] - width))
    y = corner[1] - height if corner[1] >= height else corner[1]
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 2 - left, y + 2 - top), text, fill="white", font=font)


def _fitting_font(text: str, width: int, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    wanted = ImageFont.load_default(size=size)
    return ImageFont.load_default(size=min(size, size * width / max(1.0, wanted.getlength(text))))
