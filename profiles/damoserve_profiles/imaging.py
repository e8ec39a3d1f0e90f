"""Encoded images to RGB arrays, and the stretch to the network's input.

ImageError
├── UndecodableImage   not a supported format, or broken, or cut short
└── TooManyPixels      the header announces more pixels than allowed; nothing was decoded
"""

import io
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
DEFAULT_MAX_PIXELS = 50_000_000

# Our limit is checked once a file is open, but some of Pillow's readers allocate the canvas while they open it. Its
# own, process-wide limit is checked before that: it warns above this number and raises above twice as many.
Image.MAX_IMAGE_PIXELS = 2 * DEFAULT_MAX_PIXELS

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation (CIPA DC-008, tag 274)."""


class ImageError(ValueError):
    """The image cannot be used."""


class UndecodableImage(ImageError):
    """The bytes are no image of a supported format, or are damaged."""


class TooManyPixels(ImageError):
    """The image has more pixels than allowed."""


@dataclass(frozen=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int


def decode(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """Decodes an image file to RGB `[height, width, 3]`, in the orientation in which a viewer displays it.

    Raises UndecodableImage or TooManyPixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise TooManyPixels(f"the image has {width} x {height} pixels; at most {max_pixels} are accepted")
            return _to_rgb(_upright(image))
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(f"the image has far more than the {max_pixels} pixels that are accepted") from error
    except UnidentifiedImageError as error:
        formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise UndecodableImage(f"the image is not a readable {formats} file") from error
    except Exception as error:  # whatever the damage leads Pillow's decoders to: OSError, SyntaxError, struct.error ...
        raise UndecodableImage(f"the image is damaged: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it writes the EXIF anew, which fails for many a camera's odd entries.
    image.load()  # a PNG may have its EXIF behind the pixels
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # unreadable EXIF says nothing about the pixels
        orientation = None
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        # 16-bit grey: keep the high byte, where Pillow's own conversion would clip everything above 255 to white.
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def resize(image: NDArray[np.uint8], size: Size, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Stretches `[H, W, 3]` to `[size.height, size.width, 3]`, into `out` if given (contiguous, of that shape).

    The aspect ratio is not kept: so DAMO-YOLO v0.3 is trained and evaluated.
    """
    resized: NDArray[np.uint8] = cv2.resize(image, (size.width, size.height), dst=out, interpolation=cv2.INTER_LINEAR)
    return resized
