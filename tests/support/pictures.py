"""Pictures of one colour, or of four."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image


def picture(*colours: str, size: tuple[int, int] = (80, 60)) -> Image.Image:
    """An image with one colour, or four: top left, top right, bottom left, bottom right."""
    four = colours * 4 if len(colours) == 1 else colours
    image = Image.new("RGB", size)
    w, h = size[0] // 2, size[1] // 2
    for index, colour in enumerate(four):
        image.paste(colour, (index % 2 * w, index // 2 * h, index % 2 * w + w, index // 2 * h + h))
    return image


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@dataclass
class Pictures:
    """The helpers above, for tests."""

    draw: Callable[..., Image.Image] = picture
    encode: Callable[..., bytes] = encode
    red: bytes = field(default_factory=lambda: encode(picture("red")))
