"""Pictures on their way to the server: pixels become a file that it takes, files are looked at before they are sent.

UnreadableImage   a file that cannot be sent as a picture; the text says what is wrong with it
"""

import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import grpc
from PIL import ExifTags, Image, UnidentifiedImageError

from damoserve_client.errors import Failure, InvalidArray

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""The formats that the contract takes, by Pillow's names."""
_WANTED = "send a JPEG, PNG, WebP or BMP file"

LARGEST_RAW = 16 * 2**20
"""Bytes up to which pixels are sent as they are, in a BMP file: as many as a server takes by default. A BMP of
1920 x 1080 takes 7 ms to pack and unpack, the best PNG 590 ms at half of the bytes (`benchmarks/pixels.py`)."""
_RUN_LENGTHS = 3
"""zlib's strategy Z_RLE: of noisy pictures the smallest PNG and nearly the quickest."""

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


@runtime_checkable
class Pixels(Protocol):
    """An array as NumPy's, Pillow's images and others describe themselves; NumPy itself is not needed."""

    @property
    def __array_interface__(self) -> Mapping[str, Any]: ...


ImageSource = bytes | bytearray | memoryview | str | os.PathLike[str] | Pixels
"""The content of a JPEG, PNG, WebP or BMP file, or the path of one; or pixels: a Pillow image, or an array of RGB
`[height, width, 3]`, uint8."""


class UnreadableImage(Exception):
    """A file cannot be sent as a picture. The text continues a sentence that begins with the file's name."""


def file_content(source: ImageSource) -> bytes:
    """The bytes of an image file: the given ones, those at the given path, or a file made of the given pixels.

    Pixels lose nothing: they become a BMP, or a PNG where that would be large. Raises OSError if a path cannot be read,
    InvalidArray if an array holds no RGB pixels, and TypeError if the source is nothing of all that.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, bytearray):
        return bytes(source)
    if isinstance(source, str | os.PathLike):
        return Path(source).read_bytes()
    if isinstance(source, Image.Image):
        return _encoded(to_rgb(upright(source)))
    if isinstance(source, memoryview) and source.ndim == 1 and source.itemsize == 1:
        return source.tobytes()
    return _encoded(_picture(source))


def read_picture(path: Path) -> bytes:
    """The content of an image file, once it has been decoded to see that it is whole. Raises UnreadableImage."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UnreadableImage("there is no such file") from None
    except IsADirectoryError:
        raise UnreadableImage("this is a folder; give the pictures in it") from None
    except OSError as error:
        raise UnreadableImage(f"it cannot be read ({error.strerror or error})") from None
    if not content:
        raise UnreadableImage("the file is empty")
    try:
        _decode(content)
    except UnidentifiedImageError:
        raise UnreadableImage(f"this is not a picture; {_WANTED}") from None
    except (Image.DecompressionBombError, MemoryError):
        return content  # how many pixels are too many is for the server to say
    except Exception as error:  # whatever the damage leads Pillow's decoders to: OSError, SyntaxError, struct.error ...
        raise UnreadableImage(f"the picture is damaged or cut short ({error})") from None
    return content


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


def _decode(content: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            # Of a JPEG an eighth on each side: every byte is read all the same, in a third of the time.
            image.draft(None, (image.width // 8 or 1, image.height // 8 or 1))
            image.load()


def _picture(source: Pixels | memoryview) -> Image.Image:
    """The pixels of an array. Raises InvalidArray or TypeError."""
    shape, kind = _layout(source)
    if len(shape) != 3 or shape[2] != 3 or kind != "uint8" or 0 in shape:
        raise InvalidArray(Failure(grpc.StatusCode.INVALID_ARGUMENT, _objection(shape, kind)))
    # An array's own copy is quick for any order in memory; that of a memoryview goes byte by byte where it is turned.
    tobytes = getattr(source, "tobytes", None) or memoryview(source).tobytes  # type: ignore[arg-type]
    height, width, _ = shape
    return Image.frombytes("RGB", (width, height), tobytes())


def _layout(source: Pixels | memoryview) -> tuple[tuple[int, ...], str]:
    """The shape, and what kind of number the elements are."""
    if isinstance(source, Pixels):
        interface = source.__array_interface__
        kind = str(getattr(source, "dtype", interface["typestr"]))
        return tuple(interface["shape"]), "uint8" if kind == "|u1" else kind
    try:
        view = memoryview(source)
    except TypeError:
        what = f"an image is the content or the path of a file, a Pillow image or an array, not {type(source).__name__}"
        raise TypeError(f"{what}; of a tensor give `.numpy()`") from None
    return view.shape or (), "uint8" if view.format == "B" else f"format {view.format!r}"


def _objection(shape: tuple[int, ...], kind: str) -> str:
    hint = "; of an encoded file give the bytes, `.tobytes()`" if len(shape) == 1 or shape[1:] == (1,) else ""
    return f"an array must hold RGB pixels, uint8 [height, width, 3]; this one is {kind} {list(shape)}{hint}"


def _encoded(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    if 3 * picture.width * picture.height <= LARGEST_RAW - 1024:
        picture.save(file, "BMP")
    else:
        picture.save(file, "PNG", compress_level=1, compress_type=_RUN_LENGTHS)
    return file.getvalue()
