"""Limits of pictures, and their decoding and resizing in threads: the codecs release the interpreter lock."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles import imaging
from damoserve_profiles.imaging import ResizeMode, Size
from damoserve_server.errors import DamoserveError, ImageEmpty, ImageTooLarge, ImageUndecodable

FIELD = "image.content"
"""Name by which an error tells a caller which field of the request is wrong."""
DECODE_FAILURES: Mapping[type[DamoserveError], str] = {
    ImageEmpty: "empty",
    ImageTooLarge: "too_large",
    ImageUndecodable: "undecodable",
}
"""Labels, in the metrics, of the errors that an image can cause."""

Image = bytes | NDArray[np.uint8]
"""An image file, or the pixels themselves: RGB `[height, width, 3]`."""


def bytes_to_decode(image: Image) -> int:
    """Returns the size of an image file; 0 for pixels, which cost nothing to decode, and say nothing about files."""
    return len(image) if isinstance(image, bytes) else 0


@dataclass(frozen=True)
class ImageLimits:
    """Bounds on the images that the server accepts."""

    max_bytes: int
    """Most bytes of an image file."""
    max_pixels: int
    """Most pixels, width times height."""

    def check(self, image: Image) -> None:
        """Checks everything that can be known before decoding. Raises ImageEmpty or ImageTooLarge."""
        if not (image if isinstance(image, bytes) else image.size):
            raise ImageEmpty(FIELD, "the image is empty")
        if not isinstance(image, bytes):
            self._check_pixels(image)
        elif len(image) > self.max_bytes:
            message = f"the image has {len(image)} bytes; at most {self.max_bytes} are accepted"
            raise ImageTooLarge(FIELD, message, bytes=len(image), max_bytes=self.max_bytes)

    def _check_pixels(self, image: NDArray[np.uint8]) -> None:
        height, width, _ = image.shape
        if width * height > self.max_pixels:
            message = f"the image has {width} x {height} pixels; at most {self.max_pixels} are accepted"
            raise ImageTooLarge(FIELD, message, max_pixels=self.max_pixels)


@dataclass(frozen=True)
class ImageReader:
    """Decodes and resizes images, within limits, in the threads of a pool."""

    limits: ImageLimits
    threads: Executor

    def submit(self, work: Callable[[], None]) -> Future[None]:
        """Runs `work`, which reads an image and must not raise, in a thread."""
        return self.threads.submit(work)

    async def close(self) -> None:
        """Waits for the threads to end."""
        await asyncio.to_thread(self.threads.shutdown)

    def read(self, image: Image, row: NDArray[np.uint8], mode: ResizeMode) -> Size:
        """Writes the image, resized by `mode`, into `row` `[height, width, 3]`; returns its size as displayed.

        Raises ImageTooLarge or ImageUndecodable.
        """
        pixels = self._decode(image) if isinstance(image, bytes) else image
        height, width, _ = row.shape
        imaging.resize(pixels, Size(width, height), mode, out=row)
        return Size(pixels.shape[1], pixels.shape[0])

    def _decode(self, data: bytes) -> NDArray[np.uint8]:
        try:
            return imaging.decode(data, self.limits.max_pixels)
        except imaging.TooManyPixels as error:
            raise ImageTooLarge(FIELD, str(error), max_pixels=self.limits.max_pixels) from error
        except imaging.ImageError as error:
            raise ImageUndecodable(FIELD, str(error)) from error
