"""Finds the objects in the frames of a video, over one call.

    damoserve serve &
    python examples/stream.py docs/images/smear.jpg

The video is a window that wanders over a picture. Of a camera you would encode each frame instead, with OpenCV for
example: `cv2.imencode(".jpg", frame)[1].tobytes()`.
"""

import io
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import typer
from PIL import Image

from damoserve_client import DEFAULT_ADDRESS, Client, Frame


def wander(path: Path, count: int) -> Iterator[Frame]:
    """JPEG frames, each with half a second to be answered in."""
    with Image.open(path) as picture:
        width, height = picture.width * 3 // 4, picture.height * 3 // 4
        for number in range(count):
            left = (picture.width - width) * number // count
            content = io.BytesIO()
            picture.crop((left, 0, left + width, height)).convert("RGB").save(content, "JPEG")
            yield Frame(content.getvalue(), budget=0.5)


def main(image: Path, frames: int = 30, address: str = DEFAULT_ADDRESS) -> None:
    with (
        Client(address) as client,
        # A camera's frames are worth nothing when the next are there: the server drops the older ones it has not begun.
        closing(client.stream(wander(image, frames), on_overload="drop_oldest")) as answers,
    ):
        for answer in answers:  # one for each frame, in their order
            if answer.result is not None:
                typer.echo(f"{answer.frame_id}: {answer.result.profile}, {answer.result.count_by_label()}")
            else:
                typer.echo(f"{answer.frame_id}: {answer.error or f'dropped, {answer.dropped}'}")


if __name__ == "__main__":
    typer.run(main)
