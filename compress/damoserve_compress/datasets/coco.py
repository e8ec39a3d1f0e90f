"""COCO detection data on disk: reading it lazily, and writing any data set in that form.

Format: https://cocodataset.org/#format-data (object detection; boxes are [left, top, width, height] in pixels).
"""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from damoserve_compress.datasets import AnnotationsError, Dataset, PictureError, Sample
from damoserve_profiles.imaging import decode


@dataclass(frozen=True, eq=False)
class _Entry:
    identifier: int
    file_name: str
    width: int
    height: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


class CocoDataset:
    """The pictures of one COCO annotation file, decoded when asked for.

    The label index is the rank of the category id. Boxes are clipped to the picture; what is then empty is dropped,
    and so are crowd regions, which outline no single object.
    """

    def __init__(self, annotations: Path, images: Path) -> None:
        """Raises AnnotationsError where the file is missing, is not JSON or lacks what COCO requires."""
        document = _read(annotations)
        self._images = images
        try:
            categories = sorted(document["categories"], key=lambda category: int(category["id"]))
            self._labels = tuple(str(category["name"]) for category in categories)
            self._entries = _entries(document, {int(c["id"]): rank for rank, c in enumerate(categories)})
        except KeyError as error:
            raise AnnotationsError(f"{annotations}: not COCO detection data: missing or unknown {error}") from error
        except (TypeError, ValueError) as error:
            raise AnnotationsError(f"{annotations}: not COCO detection data: {error}") from error

    @property
    def labels(self) -> tuple[str, ...]:
        return self._labels

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        """Raises PictureError where the picture is missing, broken or not of the annotated size."""
        entry = self._entries[index]
        path = self._images / entry.file_name
        try:
            image = np.array(decode(path.read_bytes()))  # a copy: decoders may return a read-only view
        except FileNotFoundError as error:
            raise PictureError(f"{path}: no such picture") from error
        except (OSError, ValueError) as error:
            raise PictureError(f"{path}: cannot be read as a picture: {error}") from error
        height, width = image.shape[:2]
        if (width, height) != (entry.width, entry.height):
            raise PictureError(f"{path}: is {width}x{height}, annotated as {entry.width}x{entry.height}")
        return Sample(image, entry.boxes.copy(), entry.labels.copy(), entry.identifier)


def _read(annotations: Path) -> dict[str, Any]:
    try:
        document = json.loads(annotations.read_bytes())
    except FileNotFoundError as error:
        raise AnnotationsError(f"{annotations}: no such annotation file") from error
    except OSError as error:
        raise AnnotationsError(f"{annotations}: cannot be read: {error}") from error
    except ValueError as error:
        raise AnnotationsError(f"{annotations}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise AnnotationsError(f"{annotations}: not COCO detection data: the top level is not an object")
    return document


def _entries(document: dict[str, Any], ranks: dict[int, int]) -> list[_Entry]:
    marks: dict[int, list[tuple[int, list[float]]]] = defaultdict(list)
    for annotation in document["annotations"]:
        if not annotation.get("iscrowd", 0):
            marks[int(annotation["image_id"])].append((ranks[int(annotation["category_id"])], annotation["bbox"]))
    return [_entry(image, marks[int(image["id"])]) for image in document["images"]]


def _entry(image: dict[str, Any], marks: list[tuple[int, list[float]]]) -> _Entry:
    width, height = int(image["width"]), int(image["height"])
    corner_and_size = np.array([bbox for _, bbox in marks], np.float64).reshape(len(marks), 4)
    if not np.isfinite(corner_and_size).all():
        raise ValueError(f"image {image['id']} has a box that is not finite")
    corners = np.hstack([corner_and_size[:, :2], corner_and_size[:, :2] + corner_and_size[:, 2:]])
    boxes = np.clip(corners, 0, [width, height, width, height]).astype(np.float32)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    labels = np.array([label for label, _ in marks], np.int64)
    return _Entry(int(image["id"]), str(image["file_name"]), width, height, boxes[kept], labels[kept])


def write_coco(dataset: Dataset, folder: Path, quality: int = 95) -> Path:
    """Writes ``folder/annotations.json`` and ``folder/images/*.jpg``; returns the path of the annotations.

    ``CocoDataset(folder / "annotations.json", folder / "images")`` reads them back: boxes to a thousandth of a pixel,
    pictures to the error of a JPEG of this quality (1 to 100).
    """
    pictures = folder / "images"
    pictures.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for index in range(len(dataset)):
        sample = dataset[index]
        name = f"{sample.identifier:06d}.jpg"
        write_jpeg(sample.image, pictures / name, quality)
        height, width = sample.image.shape[:2]
        images.append({"id": sample.identifier, "file_name": name, "width": width, "height": height})
        annotations.extend(_annotations(sample, first=len(annotations) + 1))
    categories = [{"id": rank + 1, "name": label} for rank, label in enumerate(dataset.labels)]
    path = folder / "annotations.json"
    document = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def _annotations(sample: Sample, first: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for offset, (box, label) in enumerate(zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True)):
        left, top, right, bottom = box
        bbox = [round(value, 3) for value in (left, top, right - left, bottom - top)]
        rows.append(
            {
                "id": first + offset,
                "image_id": sample.identifier,
                "category_id": label + 1,
                "bbox": bbox,
                "area": round(bbox[2] * bbox[3], 3),
                "iscrowd": 0,
            }
        )
    return rows


def write_jpeg(image: NDArray[np.uint8], path: Path, quality: int) -> None:
    """Writes H x W x 3 RGB as a JPEG, making no folders."""
    encoded, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise PictureError(f"{path}: cannot be encoded as a JPEG")
    path.write_bytes(data.tobytes())
