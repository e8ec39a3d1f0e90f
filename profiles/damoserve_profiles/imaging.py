"""Decoding of images to RGB arrays, and resizing of these to the network's input.

ImageError
├── UndecodableImage   not a supported format, or broken, or cut short
└── TooManyPixels      the header announces more pixels than allowed; nothing was decoded
"""

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
DEFAULT_MAX_PIXELS = 50_000_000

ResizeMode = Literal["stretch", "fit"]
"""Way to resize. `stretch` fills the network's input, as DAMO-YOLO is trained and evaluated since v0.3. `fit` keeps the
aspect ratio and leaves zeros at the right and at the bottom, as for its legacy checkpoints."""

# Our limit is checked once a file is open, but some of Pillow's readers allocate the canvas while they open it. Its
# own, process-wide limit is checked before that: it warns above this number and raises above twice as many.
Image.MAX_IMAGE_PIXELS = 2 * DEFAULT_MAX_PIXELS
# Python remembers every text that it warned with, and here each size makes another.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

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
"""Transposition that undoes each EXIF orientation (CIPA DC-008, tag 274)."""


class ImageError(ValueError):
    """Raised when an image cannot be used."""


class UndecodableImage(ImageError):
    """Raised when the bytes are no image of a supported format, or are damaged."""


class TooManyPixels(ImageError):
    """Raised when an image has more pixels than allowed."""


@dataclass(frozen=True)
class Size:
    """A width and a height, in pixels."""

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
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))  # converting RGB would copy it


def shown_size(image: Size, network: Size, mode: ResizeMode) -> Size:
    """Returns the size of the part of the network's input that shows the image, at the top left.

    The factor from there back to the image is that of these two sizes, on each axis its own. A fitted size is rounded
    down, as in the reference implementation (damo/dataset/transforms/transforms.py).
    """
    if mode == "stretch":
        return network
    scale = min(network.width / image.width, network.height / image.height)
    return Size(max(int(image.width * scale), 1), max(int(image.height * scale), 1))


def resize(
    image: NDArray[np.uint8], network: Size, mode: ResizeMode = "stretch", out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Resizes `[H, W, 3]` to `[network.height, network.width, 3]`, in `out` if given, which it overwrites.

    It interpolates bilinearly.
    """
    if out is None:
        out = np.empty((network.height, network.width, 3), np.uint8)
    shown = shown_size(Size(image.shape[1], image.shape[0]), network, mode)
    out[shown.height :] = 0
    out[: shown.height, shown.width :] = 0
    part = out[: shown.height, : shown.width]
    cv2.resize(image, (shown.width, shown.height), dst=part, interpolation=cv2.INTER_LINEAR)
    return out
