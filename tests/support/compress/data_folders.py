"""Small annotated data sets on disk."""

import json
from pathlib import Path

import cv2
import numpy as np

Rows = list[dict[str, object]]
CATEGORIES: Rows = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]


def draw(path: Path, shade: int, size: tuple[int, int] = (100, 80)) -> None:
    """A picture of noise, so that it does not survive being cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(shade).integers(0, 256, (size[1], size[0], 3), np.uint8)
    cv2.imwrite(str(path), pixels)


def image(identifier: int, name: str, size: tuple[int, int] = (100, 80)) -> dict[str, object]:
    return {"id": identifier, "file_name": name, "width": size[0], "height": size[1]}


def box(identifier: int, image_id: int, bbox: list[float], **more: object) -> dict[str, object]:
    return {"id": identifier, "image_id": image_id, "category_id": 1, "bbox": bbox, **more}


def write(path: Path, images: Rows, annotations: Rows, categories: Rows = CATEGORIES) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def whole(identifier: int) -> Rows:
    """A box of each class for a picture."""
    return [box(identifier * 10 + rank, identifier, [10, 10, 20, 20], category_id=rank) for rank in (1, 2)]


def write_good(folder: Path) -> Path:
    """A data set without a fault."""
    for number, name in enumerate(("train", "val"), 1):
        draw(folder / "images" / f"{name}.png", shade=number)
        write(folder / f"{name}.json", [image(1, f"{name}.png")], whole(1))
    return folder
