import io
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor, ImageOps

from damoserve_client.draw import Panel, annotate, colour_of, sheet
from damoserve_client.images import upright
from damoserve_client.labels import place
from damoserve_client.types import Box, Detection

PAPER = (244, 236, 236)


def encoded(image: Image.Image, kind: str = "PNG", orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


def cell(box: Box, label_id: int = 0) -> Detection:
    return Detection(label="RBC", label_id=label_id, score=0.9, box=box)


def test_a_box_is_drawn_on_its_edges_only() -> None:
    picture = annotate(encoded(Image.new("RGB", (200, 150), PAPER)), [cell(Box(40, 50, 140, 120), label_id=1)])
    colour = ImageColor.getrgb(colour_of(1))
    for edge in ((40, 90), (140, 90), (120, 50), (90, 120)):
        assert picture.getpixel(edge) == colour
    for elsewhere in ((90, 90), (20, 90), (180, 90), (90, 140)):
        assert picture.getpixel(elsewhere) == PAPER


def test_the_label_stands_above_the_box() -> None:
    picture = annotate(encoded(Image.new("RGB", (200, 150), PAPER)), [cell(Box(40, 50, 140, 120))])
    tag = picture.crop((40, 36, 80, 50)).getcolors() or []
    assert {ImageColor.getrgb(colour_of(0)), (255, 255, 255)} <= {colour for _, colour in tag}


def test_boxes_are_drawn_on_the_picture_as_displayed() -> None:
    # Orientation 6: stored lying on its side, displayed turned clockwise, so 200 x 150 becomes 150 x 200.
    picture = annotate(encoded(Image.new("RGB", (200, 150), PAPER), orientation=6), [cell(Box(20, 30, 130, 180))])
    assert picture.size == (150, 200)
    assert picture.getpixel((75, 180)) == ImageColor.getrgb(colour_of(0))


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_turned_as_pillow_turns_it(orientation: int) -> None:
    stored = Image.new("RGB", (3, 2))
    stored.putdata([(40 * index, 0, 0) for index in range(6)])
    with Image.open(io.BytesIO(encoded(stored, orientation=orientation))) as image:
        assert upright(image).tobytes() == ImageOps.exif_transpose(image).tobytes()
        assert upright(image).size == ImageOps.exif_transpose(image).size


def test_an_upright_picture_is_not_copied() -> None:
    with Image.open(io.BytesIO(encoded(Image.new("RGB", (3, 2))))) as image:
        assert upright(image) is image


def little_endian_exif(*entries: tuple[int, int, int, int]) -> bytes:
    """One directory of (tag, type, count, value or offset), and text behind it that an offset of 38 finds."""
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + b"72 dpi\0\0"


def test_a_tag_of_the_wrong_type_does_not_matter() -> None:
    # XResolution, a fraction, as text of 7 bytes.
    exif = little_endian_exif((0x0112, 3, 1, 6), (0x011A, 2, 7, 38))
    buffer = io.BytesIO()
    Image.new("RGB", (200, 150)).save(buffer, "JPEG", exif=exif)
    assert annotate(buffer.getvalue(), []).size == (150, 200)


def test_exif_that_cannot_be_read_does_not_matter() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (200, 150)).save(buffer, "PNG", exif=b"no directory")  # of a JPEG, Pillow hides the failure
    assert annotate(buffer.getvalue(), []).size == (200, 150)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    assert annotate(encoded(Image.new(mode, (64, 64))), []).mode == "RGB"


def test_sixteen_bits_keep_their_shades() -> None:
    picture = annotate(encoded(Image.new("I;16", (64, 64), 0x4000)), [])
    assert picture.getpixel((5, 5)) == (0x40, 0x40, 0x40)


@given(st.integers(0, 79), st.integers(0, 79), st.integers(1, 80), st.integers(1, 80))
def test_any_box_inside_the_picture_can_be_drawn(x: int, y: int, width: int, height: int) -> None:
    box = Box(x, y, min(80, x + width), min(80, y + height))
    picture = annotate(encoded(Image.new("RGB", (80, 80), PAPER)), [cell(box)])
    assert picture.size == (80, 80)


SIDE = 300
LENGTHS = st.integers(0, SIDE)
BOXES = st.builds(
    lambda x, y: Box(min(x), min(y), max(x), max(y)), st.tuples(LENGTHS, LENGTHS), st.tuples(LENGTHS, LENGTHS)
)
SIZES = st.tuples(st.integers(5, 120), st.integers(8, 40))


def apart(one: Box, other: Box) -> bool:
    return one.x_max <= other.x_min or other.x_max <= one.x_min or one.y_max <= other.y_min or other.y_max <= one.y_min


class TestPlacesOfLabels:
    @given(st.lists(st.tuples(BOXES, SIZES), max_size=25))
    def test_no_two_overlap_and_all_are_inside(self, wanted: list[tuple[Box, tuple[int, int]]]) -> None:
        boxes, sizes = [box for box, _ in wanted], [size for _, size in wanted]
        places = place(boxes, sizes, (SIDE, SIDE))
        assert len(places) == len(wanted)
        found = [where for where in places if where is not None]
        assert all(apart(one, other) for one, other in itertools.combinations(found, 2))
        for where in found:
            assert where.x_min >= 0
            assert where.x_max <= SIDE
            assert where.y_min >= 0
            assert where.y_max <= SIDE

    @given(st.lists(st.tuples(BOXES, SIZES), min_size=1, max_size=25))
    def test_each_touches_its_box_in_its_size(self, wanted: list[tuple[Box, tuple[int, int]]]) -> None:
        boxes, sizes = [box for box, _ in wanted], [size for _, size in wanted]
        for box, (width, height), where in zip(boxes, sizes, place(boxes, sizes, (SIDE, SIDE)), strict=True):
            if where is None:
                continue
            assert (where.x_max - where.x_min, where.y_max - where.y_min) == (width, height)
            assert where.x_min <= box.x_max
            assert box.x_min <= where.x_max
            assert where.y_min <= box.y_max
            assert box.y_min <= where.y_max

    @given(BOXES, SIZES)
    def test_a_lone_label_has_room_above_or_inside(self, box: Box, size: tuple[int, int]) -> None:
        assert place([box], [size], (SIDE, SIDE)) != [None]

    def test_the_first_has_the_first_choice_and_the_last_may_find_none(self) -> None:
        box = Box(100, 100, 140, 140)
        first, *others = place([box] * 30, [(40, 20)] * 30, (SIDE, SIDE))
        assert first == Box(100, 80, 140, 100)
        assert 0 < others.count(None) < 29
        assert place([box], [(40, 20)], (30, SIDE)) == [None]

    def test_labels_that_would_have_piled_up_stay_apart_in_the_picture(self) -> None:
        crowd = [cell(Box(60 + 6 * index, 80, 130 + 6 * index, 130), label_id=index % 8) for index in range(4)]
        picture = annotate(encoded(Image.new("RGB", (320, 220), PAPER)), crowd)
        alone = [annotate(encoded(Image.new("RGB", (320, 220), PAPER)), [each]) for each in crowd]
        whites = [
            sum(count for count, colour in image.getcolors(1 << 16) or [] if colour == (255, 255, 255))
            for image in (picture, *alone)
        ]
        assert whites[0] == sum(whites[1:])  # no text lies under another label

    def test_a_name_cannot_add_lines(self) -> None:
        blank = encoded(Image.new("RGB", (320, 220), PAPER))
        several = Detection(label="A\nB\x1b", label_id=0, score=0.9, box=Box(40, 100, 140, 160))
        spelled = Detection(label=r"A\nB\x1b", label_id=0, score=0.9, box=Box(40, 100, 140, 160))
        assert annotate(blank, [several]).tobytes() == annotate(blank, [spelled]).tobytes()


@pytest.mark.parametrize(("count", "across", "down"), [(1, 1, 1), (2, 2, 1), (4, 2, 2), (5, 3, 2)])
def test_a_sheet_shows_every_picture_under_its_caption(count: int, across: int, down: int) -> None:
    shades = [(10 * index, 100, 200) for index in range(count)]
    made = sheet([Panel("int8: AP 0.6", Image.new("RGB", (90, 60), shade)) for shade in shades])
    assert made.width == pytest.approx(across * 90, abs=12 * (across + 1))
    assert made.height == pytest.approx(down * 60, abs=36 * (down + 1))
    pixels = {colour: number for number, colour in made.getcolors(1 << 16) or [] if isinstance(colour, tuple)}
    assert [pixels[shade] for shade in shades] == [90 * 60] * count
    assert min(colour[0] for colour in pixels if len(set(colour)) == 1) < 64  # the captions' text
