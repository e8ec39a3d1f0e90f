"""What images the server understands."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from damoserve_profiles.imaging import Size
from damoserve_server.errors import ImageEmpty, ImageTooLarge
from damoserve_server.inputs.images import ImageLimits, ImageReader
from tests.support.pictures import Pictures
from tests.support.server import Serve

EXIF_ORIENTATION = 0x0112


def modes(pictures: Pictures) -> dict[str, tuple[bytes, set[str]]]:
    red = pictures.draw("red")
    transparent = red.convert("RGBA")
    transparent.putalpha(0)
    return {
        "cmyk": (pictures.encode(red.convert("CMYK"), "JPEG", quality=95), {"red"}),
        "grey": (pictures.encode(pictures.draw("white").convert("L")), {"red", "green", "blue"}),
        "rgba": (pictures.encode(transparent), {"red"}),
        "palette": (pictures.encode(red.convert("P")), {"red"}),
        "bilevel": (pictures.encode(pictures.draw("white").convert("1")), {"red", "green", "blue"}),
        "webp": (pictures.encode(red, "WEBP"), {"red"}),
        "bmp": (pictures.encode(red, "BMP"), {"red"}),
    }


async def test_all_kinds_of_images(serve: Serve, pictures: Pictures) -> None:
    cases = modes(pictures)
    async with serve() as client:
        result = {
            name: {d.label for d in (await client.detect(image, score_threshold=0.9)).detections}
            for name, (image, _) in cases.items()
        }
    assert result == {name: labels for name, (_, labels) in cases.items()}


async def test_16_bit_grey_keeps_its_brightness(serve: Serve, pictures: Pictures) -> None:
    image = pictures.encode(Image.fromarray(np.full((60, 80), 0x8000, np.uint16)))
    async with serve() as client:
        result = {round(d.score, 3) for d in (await client.detect(image, score_threshold=0.1)).detections}
    assert result == {round(0x80 / 0xFF, 3)}


async def test_boxes_follow_the_orientation_in_which_the_image_is_displayed(serve: Serve, pictures: Pictures) -> None:
    """The file is stored lying on its side: displayed, its top left quarter is at the top right."""
    stored = pictures.draw("red", "black", "black", "black", size=(160, 80))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # to be turned by 90 degrees clockwise
    async with serve() as client:
        response = await client.detect(pictures.encode(stored, "JPEG", exif=exif, quality=95))
    assert (response.image_width_px, response.image_height_px) == (80, 160)
    box = response.detections[0].box
    assert (box.x_min, box.y_min, box.x_max, box.y_max) == (40, 0, 80, 80)


@pytest.fixture
def reader() -> Iterator[ImageReader]:
    with ThreadPoolExecutor(1) as threads:
        yield ImageReader(ImageLimits(max_bytes=10_000, max_pixels=4800), threads)


def test_an_image_is_resized_into_the_row_and_nowhere_else(reader: ImageReader, pictures: Pictures) -> None:
    rows = np.zeros((3, 32, 64, 3), np.uint8)
    assert reader.read(pictures.red, rows[1], "stretch") == Size(80, 60)
    assert (rows[1] == [255, 0, 0]).all()
    assert not rows[[0, 2]].any()


def test_a_row_that_showed_another_image_is_zero_around_a_fitted_one(reader: ImageReader, pictures: Pictures) -> None:
    rows = np.full((3, 32, 64, 3), 7, np.uint8)
    assert reader.read(pictures.red, rows[1], "fit") == Size(80, 60)
    assert (rows[1, :, :42] == [255, 0, 0]).all()  # 80 x 60 fits 64 x 32 as 42 x 32
    assert not rows[1, :, 42:].any()
    wide = pictures.encode(pictures.draw("blue", size=(80, 20)))
    reader.read(wide, rows[1], "fit")
    assert (rows[1, :16] == [0, 0, 255]).all()
    assert not rows[1, 16:].any()
    assert (rows[[0, 2]] == 7).all()


async def test_a_fitting_profile_is_served_as_it_was_trained(
    serve: Serve, repository: Path, new_profile: Callable[..., None], pictures: Pictures
) -> None:
    """The 80 x 60 image fills the left 42 of 64 columns: the network's right quarters show 10 of it and 22 of zeros."""
    new_profile(repository, "fitted", ap=0.7, resize="fit")
    image = pictures.encode(pictures.draw("red"))
    async with serve() as client:
        fitted = await client.detect(image, profile="fitted", score_threshold=0.2)
        stretched = await client.detect(image, profile="quick", score_threshold=0.2)
    corners = [(d.box.x_min, d.box.y_min, d.box.x_max, d.box.y_max) for d in fitted.detections]
    edge = 32 / 42 * 80
    assert sorted(corners) == [
        pytest.approx(box) for box in ((0, 0, edge, 30), (0, 30, edge, 60), (edge, 0, 80, 30), (edge, 30, 80, 60))
    ]
    assert sorted(round(d.score, 3) for d in fitted.detections) == [round(10 / 32, 3)] * 2 + [1.0] * 2
    assert sorted(d.score for d in stretched.detections) == [1.0] * 4


def test_limits_hold_at_their_edge(reader: ImageReader, pictures: Pictures) -> None:
    row = np.zeros((32, 64, 3), np.uint8)
    assert reader.read(pictures.encode(pictures.draw("red", size=(4800, 1))), row, "stretch") == Size(4800, 1)
    with pytest.raises(ImageTooLarge):
        reader.read(pictures.encode(pictures.draw("red", size=(4801, 1))), row, "stretch")
    reader.limits.check(bytes(10_000))
    with pytest.raises(ImageTooLarge):
        reader.limits.check(bytes(10_001))


def test_pixels_are_read_like_the_file_that_holds_them(reader: ImageReader, pictures: Pictures) -> None:
    image = pictures.draw("red", "lime", "blue", "white")
    rows = np.zeros((2, 32, 64, 3), np.uint8)
    sources: tuple[bytes | NDArray[np.uint8], ...] = (pictures.encode(image), np.asarray(image))
    for row, source in zip(rows, sources, strict=True):
        reader.limits.check(source)
        assert reader.read(source, row, "fit") == Size(80, 60)
    assert (rows[0] == rows[1]).all()
    assert rows.any()


def test_limits_hold_for_pixels(reader: ImageReader) -> None:
    reader.limits.check(np.zeros((60, 80, 3), np.uint8))
    with pytest.raises(ImageTooLarge):
        reader.limits.check(np.zeros((61, 80, 3), np.uint8))
    with pytest.raises(ImageEmpty):
        reader.limits.check(np.zeros((60, 0, 3), np.uint8))
