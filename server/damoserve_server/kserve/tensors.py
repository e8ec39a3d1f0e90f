"""The tensors of the protocol: which there are, and how elements of variable length are packed."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

LENGTH = struct.Struct("<I")
"""Before every element of BYTES."""

CONTENTS = {"BYTES": "bytes_contents", "FP32": "fp32_contents", "INT32": "int_contents", "UINT8": "uint_contents"}
"""The field of `InferTensorContents` for each datatype."""

MAX_IMAGES = 64
"""Of one request."""


@dataclass(frozen=True)
class Tensor:
    """`dims` lacks the number of images, which comes first; -1 stands for any length."""

    name: str
    datatype: str
    dims: tuple[int, ...]


IMAGES = Tensor("images", "BYTES", (1,))
PIXELS = Tensor("pixels", "UINT8", (-1, -1, 3))
INPUTS = (IMAGES, PIXELS)
"""A request has exactly one of them."""

COUNT = Tensor("count", "INT32", ())
BOXES = Tensor("boxes", "FP32", (-1, 4))
SCORES = Tensor("scores", "FP32", (-1,))
LABELS = Tensor("labels", "INT32", (-1,))
LABEL_NAMES = Tensor("label_names", "BYTES", (-1,))
IMAGE_SIZE = Tensor("image_size", "INT32", (2,))
OUTPUTS = (COUNT, BOXES, SCORES, LABELS, LABEL_NAMES, IMAGE_SIZE)


def pack(elements: Iterable[bytes]) -> bytes:
    """BYTES as one string: each element behind its length."""
    return b"".join(part for element in elements for part in (LENGTH.pack(len(element)), element))


def unpack(packed: bytes, count: int) -> list[bytes]:
    """Undoes `pack`. Raises ValueError if it does not hold exactly `count` elements."""
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
