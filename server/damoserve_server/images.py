"""Encoded images to network inputs, in threads: the codecs release the interpreter lock."""

import asyncio
import time
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles import imaging
from damoserve_profiles.imaging import ResizeMode, Size
from damoserve_server.errors import DeadlineExpired, ImageEmpty, ImageTooLarge, ImageUndecodable
from damoserve_server.tasks import settled

FIELD = "image.content"


@dataclass(frozen=True)
class ImageLimits:
    """What the server accepts."""

    max_bytes: int
    max_pixels: int

    def check(self, data: bytes) -> None:
        """Raises ImageEmpty or ImageTooLarge."""
        if not data:
            raise ImageEmpty(FIELD, "the image is empty")
        if len(data) > self.max_bytes:
            message = f"the image has {len(data)} bytes; at most {self.max_bytes} are accepted"
            raise ImageTooLarge(FIELD, message, bytes=len(data), max_bytes=self.max_bytes)


@dataclass(frozen=True)
class ImageReader:
    """Decodes and resizes."""

    limits: ImageLimits
    threads: Executor

    async def read(self, data: bytes, row: NDArray[np.uint8], mode: ResizeMode, deadline: float) -> Size:
        """Writes the image, resized by `mode`, into `row` `[height, width, 3]`; returns its size as displayed.

        `deadline`, on the monotonic clock, is when it must start. Raises DeadlineExpired, ImageTooLarge or
        ImageUndecodable. However it ends, nothing writes to `row` any more.
        """
        work = self.threads.submit(self._read, data, row, mode, deadline)
        return await settled(asyncio.wrap_future(work), work.cancel)

    async def close(self) -> None:
        await asyncio.to_thread(self.threads.shutdown)

    def _read(self, data: bytes, row: NDArray[np.uint8], mode: ResizeMode, deadline: float) -> Size:
        if time.monotonic() >= deadline:
            raise DeadlineExpired("the time ran out while the image waited to be decoded")
        try:
            image = imaging.decode(data, self.limits.max_pixels)
        except imaging.TooManyPixels as error:
            raise ImageTooLarge(FIELD, str(error), max_pixels=self.limits.max_pixels) from error
        except imaging.ImageError as error:
            raise ImageUndecodable(FIELD, str(error)) from error
        height, width, _ = row.shape
        imaging.resize(image, Size(width, height), mode, out=row)
        return Size(image.shape[1], image.shape[0])
