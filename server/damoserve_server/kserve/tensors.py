"""The tensors that every model has, and how elements of variable length are packed into bytes.

A request has one of the inputs, for 1 to MAX_IMAGES images:

images       BYTES [images] or [images, 1]        each a file: JPEG, PNG, WebP, BMP
pixels       UINT8 [images, height, width, 3]     RGB, all images of one size

Its answer has the outputs. Where images have fewer boxes than the longest row, the rest of their row is filled up:

count        INT32 [images]                       boxes of each image
boxes        FP32  [images, most boxes, 4]        x_min, y_min, x_max, y_max in pixels of the image
scores       FP32  [images, most boxes]           0 to 1, the best first
labels       INT32 [images, most boxes]           -1 as a filler
label_names  BYTES [images, most boxes]
image_size   INT32 [images, 2]                    width, height
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

LENGTH = struct.Struct("<I")
"""The length of an element of BYTES, in bytes; it stands before the element."""

CONTENTS = {"BYTES": "bytes_contents", "FP32": "fp32_contents", "INT32": "int_contents", "UINT8": "uint_contents"}
"""The field of `InferTensorContents` for each datatype."""

MAX_IMAGES = 64
"""Images that one request may have."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    """The shape without its first number, that of the images; -1 stands for any length."""


IMAGES = Tensor("images", "BYTES", (1,))
PIXELS = Tensor("pixels", "UINT8", (-1, -1, 3))
INPUTS = (IMAGES, PIXELS)
"""The inputs of a model; a request has exactly one of them."""

COUNT = Tensor("count", "INT32", ())
BOXES = Tensor("boxes", "FP32", (-1, 4))
SCORES = Tensor("scores", "FP32", (-1,))
LABELS = Tensor("labels", "INT32", (-1,))
LABEL_NAMES = Tensor("label_names", "BYTES", (-1,))
IMAGE_SIZE = Tensor("image_size", "INT32", (2,))
OUTPUTS = (COUNT, BOXES, SCORES, LABELS, LABEL_NAMES, IMAGE_SIZE)


def pack(elements: Iterable[bytes]) -> bytes:
    """Packs elements of BYTES into one string, each behind its length."""
    return b"".join(part for element in elements for part in (LENGTH.pack(len(element)), element))


def unpack(packed: bytes, count: int) -> list[bytes]:
    """Returns the elements that `pack` has packed. Raises ValueError if they are not exactly `count`."""
    elements = []
    start = 0
    for number in range(count):
        if len(packed) - start < LENGTH.size:
            raise ValueError(f"the raw contents end after {number} of {count} elements")
        (length,) = LENGTH.unpack_from(packed, start)
        start += LENGTH.size
        if len(packed) - start < length:
            raise ValueError(f"element {number} has {length} bytes; the raw contents end after {len(packed) - start}")
        elements.append(packed[start : start + length])
        start += length
    if start != len(packed):
        raise ValueError(f"the raw contents go on for {len(packed) - start} bytes after the last element")
    return elements
