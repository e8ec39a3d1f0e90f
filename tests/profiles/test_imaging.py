"""Decoding and resizing, with files made by Pillow."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from damoserve_profiles.imaging import ResizeMode, Size, TooManyPixels, UndecodableImage, decode, resize, shown_size

RED_LEFT = np.zeros((40, 60, 3), np.uint8)
RED_LEFT[:, :30] = (250, 10, 10)


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP"])
def test_lossless_formats_come_back_as_they_were(format: str) -> None:
    assert np.array_equal(decode(encode(Image.fromarray(RED_LEFT), format, lossless=True)), RED_LEFT)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    format = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    image = decode(encode(Image.fromarray(RED_LEFT).convert(mode), format))
    assert image.shape == RED_LEFT.shape
    assert image.dtype == np.uint8
    assert image[:, :25].mean() > image[:, 35:].mean() + 40


def test_sixteen_bit_grey_keeps_its_range() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(8, axis=0)
    image = decode(encode(Image.fromarray(ramp)))
    assert np.array_equal(image[0, :, 0], ramp[0] >> 8)


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: display rotates by 90 degrees clockwise
    image = decode(encode(Image.fromarray(RED_LEFT), "JPEG", exif=exif, quality=95))
    assert image.shape == (60, 40, 3)
    assert image[:25, :, 0].min() > 200
    assert image[35:, :, 0].max() < 60


def test_odd_exif_entries_do_not_spoil_the_picture() -> None:
    orientation = struct.pack("<HHII", 0x0112, 3, 1, 6)
    resolution_as_text = struct.pack("<HHI", 0x011A, 2, 3) + b"72\0\0"
    directory = struct.pack("<H", 2) + orientation + resolution_as_text + struct.pack("<I", 0)
    exif = b"Exif\0\0" + b"II*\0" + struct.pack("<I", 8) + directory
    image = decode(encode(Image.fromarray(RED_LEFT), "JPEG", exif=exif))
    assert image.shape == (60, 40, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone_as_pillow_does(orientation: int) -> None:
    corners = RED_LEFT.copy()
    corners[:10, -10:] = (0, 0, 250)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(corners), "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(decode(data), expected)


def test_a_huge_webp_is_refused_before_its_canvas_is_allocated() -> None:
    size = 16383  # the largest that the format holds in one frame
    frame = struct.pack("<BHHBHH", 0x30, 0x0100, 0x2A9D, 0, size, size)
    vp8x = b"VP8X" + struct.pack("<IB3x", 10, 0) + (59_999).to_bytes(3, "little") * 2
    vp8 = b"VP8 " + struct.pack("<I", len(frame)) + frame
    body = b"WEBP" + vp8x + vp8
    with pytest.raises((TooManyPixels, UndecodableImage)):
        decode(b"RIFF" + struct.pack("<I", len(body)) + body)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_too_many_pixels_are_refused_from_the_header() -> None:
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(TooManyPixels, match="far more"):
        decode(bomb)


def test_the_pixel_limit_is_inclusive() -> None:
    data = encode(Image.fromarray(RED_LEFT))
    assert decode(data, max_pixels=2400).shape == RED_LEFT.shape
    with pytest.raises(TooManyPixels):
        decode(data, max_pixels=2399)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_truncated_files_are_refused(format: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), format)
    with pytest.raises(UndecodableImage):
        decode(data[: int(len(data) * share)])


def test_other_formats_are_refused() -> None:
    with pytest.raises(UndecodableImage, match="JPEG, PNG, WEBP or BMP"):
        decode(encode(Image.fromarray(RED_LEFT), "GIF"))


@given(st.binary(max_size=300), st.integers(0, 200))
@settings(max_examples=200)
def test_damaged_bytes_are_refused_or_decoded_but_never_crash(noise: bytes, position: int) -> None:
    data = bytearray(encode(Image.fromarray(RED_LEFT[:8, :8])))
    data[position : position + len(noise)] = noise
    try:
        image = decode(bytes(data), max_pixels=10_000)
    except (UndecodableImage, TooManyPixels):
        return
    assert image.dtype == np.uint8


sizes = st.builds(Size, st.integers(1, 70), st.integers(1, 70))


def noise(size: Size) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(1, 256, (size.height, size.width, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["stretch", "fit"])
def test_resize_writes_into_the_given_row(mode: ResizeMode) -> None:
    pool = np.full((2, 30, 30, 3), 7, np.uint8)
    resized = resize(RED_LEFT, Size(30, 30), mode, out=pool[1])
    assert np.shares_memory(resized, pool)
    assert np.array_equal(pool[1], resize(RED_LEFT, Size(30, 30), mode))
    assert (pool[0] == 7).all()


@given(sizes, sizes)
def test_stretching_is_opencv_s_over_the_whole_input(image: Size, network: Size) -> None:
    pixels = noise(image)
    assert np.array_equal(resize(pixels, network), cv2.resize(pixels, (network.width, network.height)))


@given(sizes, sizes)
def test_a_fitted_image_lies_at_the_top_left_with_zeros_around_it(image: Size, network: Size) -> None:
    pixels = noise(image)
    row = np.full((network.height, network.width, 3), 7, np.uint8)
    resize(pixels, network, "fit", out=row)
    shown = shown_size(image, network, "fit")
    alone = cv2.resize(pixels, (shown.width, shown.height))
    assert np.array_equal(row[: shown.height, : shown.width], alone)
    assert np.count_nonzero(row) == np.count_nonzero(alone)


@given(sizes, sizes)
def test_fitting_keeps_the_aspect_ratio_to_a_pixel_and_is_as_large_as_can_be(image: Size, network: Size) -> None:
    shown = shown_size(image, network, "fit")
    assert 1 <= shown.width <= network.width
    assert 1 <= shown.height <= network.height
    assert shown.width >= network.width - 1 or shown.height >= network.height - 1
    scale = min(network.width / image.width, network.height / image.height)
    for side, original in ((shown.width, image.width), (shown.height, image.height)):
        assert side == 1 or original * scale - 1 - 1e-9 <= side <= original * scale


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        (Size(640, 480), Size(640, 480)),
        (Size(480, 640), Size(480, 640)),
        (Size(1920, 1080), Size(640, 360)),
        (Size(500, 333), Size(640, 426)),  # 426.24
        (Size(427, 640), Size(427, 640)),
        (Size(320, 100), Size(640, 200)),
    ],
)
def test_fitted_sizes(image: Size, shown: Size) -> None:
    assert shown_size(image, Size(640, 640), "fit") == shown
    assert shown_size(image, Size(640, 640), "stretch") == Size(640, 640)
