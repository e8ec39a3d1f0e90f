"""COCO detection data on disk: reading it lazily, and writing any data set in that form.

Format: https://cocodataset.org/#format-data (object detection; boxes are [left, top, width, height] in pixels).
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveInt, ValidationError

from damoserve_compress.datasets.dataset import Dataset, Sample
from damoserve_compress.datasets.errors import PictureError
from damoserve_compress.datasets.findings import FaultKind, Finding, malformed
from damoserve_compress.datasets.pictures import BoxAnnotation, Picture, PictureDataset, Scan
from damoserve_profiles.imaging import Size
from damoserve_profiles.manifest import DataSource


class _CocoRecord(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)


class _Category(_CocoRecord):
    id: int
    name: str


class _Image(_CocoRecord):
    id: int
    file_name: str
    width: PositiveInt
    height: PositiveInt


class _Annotation(_CocoRecord):
    id: int | str | None = None
    image_id: int
    category_id: int
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    iscrowd: bool = False


_RecordT = TypeVar("_RecordT", bound=_CocoRecord)


class CocoDataset(PictureDataset):
    """The pictures of one COCO annotation file.

    The label index is the rank of the category id. Crowd regions are dropped: they outline no single object.
    """

    def __init__(self, annotations: Path, images: Path) -> None:
        """Raises AnnotationsError where the file is missing, is not JSON or is not consistent COCO."""
        super().__init__(scan_coco(annotations, images))


def scan_coco(annotations: Path, images: Path) -> Scan:
    """Reads a COCO annotation file whose pictures lie in ``images``. Faults are findings; nothing is raised."""
    try:
        document = _load(annotations)
    except (OSError, ValueError) as error:
        return Scan(annotations, findings=(Finding(FaultKind.ANNOTATIONS, str(annotations), str(error)),))
    return _Scanner(annotations, images, document).scan()


def _load(annotations: Path) -> dict[str, Any]:
    try:
        document = json.loads(annotations.read_bytes())
    except FileNotFoundError as error:
        raise ValueError("no such annotation file") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ValueError("not COCO detection data: the top level is not an object")
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            raise ValueError(f"not COCO detection data: '{key}' is missing or is not a list")
    return document


class _Scanner:
    """A pass over a document: records that cannot be used become findings and are left out."""

    def __init__(self, annotations: Path, images: Path, document: dict[str, Any]) -> None:
        self._source = annotations
        self._folder = images
        self._document = document
        self._findings: list[Finding] = []

    def scan(self) -> Scan:
        categories = list(self._records("categories", _Category))
        images = list(self._records("images", _Image))
        self._report_repeats(categories, images)
        ordered = sorted(categories, key=lambda category: category.id)
        self._report_order(categories, ordered)
        ranks = {category.id: rank for rank, category in enumerate(ordered)}
        boxes, crowds = self._boxes({image.id: image.file_name for image in images}, ranks)
        labels = tuple(category.name for category in ordered)
        pictures = tuple(
            Picture.from_annotations(
                image.id, self._folder / image.file_name, Size(image.width, image.height), boxes[image.id]
            )
            for image in images
        )
        return Scan(self._source, labels, pictures, crowds, tuple(self._findings), _origin(self._document))

    def _report(self, kind: FaultKind, message: str, annotation: int | str | None = None) -> None:
        self._findings.append(Finding(kind, str(self._source), message, annotation))

    def _records(self, key: str, model: type[_RecordT]) -> Iterator[_RecordT]:
        for position, row in enumerate(self._document[key]):
            try:
                yield model.model_validate(row)
            except ValidationError as error:
                self._findings.append(malformed(str(self._source), f"{key}[{position}]", error))

    def _report_repeats(self, categories: list[_Category], images: list[_Image]) -> None:
        for kind, field, values in (
            (FaultKind.DUPLICATE_CATEGORY, "id", [category.id for category in categories]),
            (FaultKind.DUPLICATE_CATEGORY, "name", [category.name for category in categories]),
            (FaultKind.DUPLICATE_PICTURE, "id", [image.id for image in images]),
            (FaultKind.DUPLICATE_PICTURE, "file name", [image.file_name for image in images]),
        ):
            for value, count in Counter[int | str](values).items():
                if count > 1:
                    self._report(kind, f"{field} {value} is given {count} times")

    def _report_order(self, listed: list[_Category], ordered: list[_Category]) -> None:
        first = ordered[0].id if ordered else 0
        contiguous = [category.id for category in ordered] == list(range(first, first + len(ordered)))
        if listed != ordered or not contiguous:
            names = ", ".join(f"{rank} {category.name} (id {category.id})" for rank, category in enumerate(ordered))
            self._report(FaultKind.CATEGORY_ORDER, f"labels are numbered in the order of the ids: {names}")

    def _boxes(self, files: dict[int, str], ranks: dict[int, int]) -> tuple[dict[int, list[BoxAnnotation]], int]:
        """The boxes of each image by its id, and the number of crowd regions left out."""
        boxes: dict[int, list[BoxAnnotation]] = defaultdict(list)
        crowds = 0
        for annotation in self._records("annotations", _Annotation):
            if annotation.image_id not in files:
                self._report(FaultKind.UNKNOWN_PICTURE, f"unknown image id {annotation.image_id}", annotation.id)
            elif annotation.category_id not in ranks:
                message = f"unknown category id {annotation.category_id} in {files[annotation.image_id]}"
                self._report(FaultKind.UNKNOWN_CATEGORY, message, annotation.id)
            elif annotation.iscrowd:
                crowds += 1
            else:
                left, top, width, height = annotation.bbox
                corners = (left, top, left + width, top + height)
                boxes[annotation.image_id].append(BoxAnnotation(corners, ranks[annotation.category_id], annotation.id))
        return boxes, crowds


def _origin(document: Mapping[str, Any]) -> DataSource | None:
    """Returns what COCO's `info` and `licenses` say. Many exports fill them with nothing, or with what is no text."""
    info = document.get("info")
    name = _first_text(info, "description")
    if name is None:
        return None
    rows = document.get("licenses")
    named = [_first_text(row, "name") for row in (rows if isinstance(rows, list) else [])]
    licences = [text for text in (_first_text(info, "license"), *named) if text is not None]
    return DataSource(
        name=name,
        license="; ".join(dict.fromkeys(licences)) or None,
        citation=_first_text(info, "citation", "source", "url"),
    )


def _first_text(record: object, *keys: str) -> str | None:
    """The first of these fields that holds text."""
    values = [record.get(key) for key in keys] if isinstance(record, dict) else []
    return next((value.strip() for value in values if isinstance(value, str) and value.strip()), None)


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
        raise PictureError(path, "cannot be encoded as a JPEG")
    path.write_bytes(data.tobytes())
