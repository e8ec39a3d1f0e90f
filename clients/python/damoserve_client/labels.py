"""Where the label of each box goes on a picture, so that no two lie over each other and none leaves the picture."""

from collections.abc import Iterator, Sequence

from damoserve_client.types import Box


def place(boxes: Sequence[Box], sizes: Sequence[tuple[float, float]], picture: tuple[float, float]) -> list[Box | None]:
    """A place for each label, in the order of the boxes: the first ones choose first. None: there is no room.

    `sizes` are width and height of the labels, `picture` those of the picture, in pixels. A label touches its box.
    """
    taken: list[Box] = []
    places: list[Box | None] = []
    for box, size in zip(boxes, sizes, strict=True):
        free = (spot for spot in _spots(box, size, picture) if not any(_overlap(spot, other) for other in taken))
        chosen = next(free, None)
        places.append(chosen)
        if chosen is not None:
            taken.append(chosen)
    return places


def _spots(box: Box, size: tuple[float, float], picture: tuple[float, float]) -> Iterator[Box]:
    """Above the box, below it, inside at its corners, and beside it, as far as that is within the picture."""
    (width, height), (right, bottom) = size, picture
    rows = (box.y_min - height, box.y_max, box.y_min, box.y_max - height)
    # A label that is wider than its box may have to reach past it to stay inside.
    along = [(max(0.0, min(x, right - width)), y) for y in rows for x in (box.x_min, box.x_max - width)]
    beside = [(x, y) for x in (box.x_max, box.x_min - width) for y in rows[2:]]
    for x, y in along + beside:
        if min(x, y) >= 0 and x + width <= right and y + height <= bottom:
            yield Box(x, y, x + width, y + height)


def _overlap(one: Box, other: Box) -> bool:
    return one.x_min < other.x_max and other.x_min < one.x_max and one.y_min < other.y_max and other.y_min < one.y_max
