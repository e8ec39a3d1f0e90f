"""Pascal VOC detection data on disk.

Format: the VOC development kit, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/ (section 4). A list
``ImageSets/Main/<split>.txt`` names the pictures, each of which has ``Annotations/<name>.xml`` and a file of that stem
in ``JPEGImages``. The ``filename`` in the XML is not read: in many a data set it is still that of before a renaming.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

# Safe enough for files of unknown origin: ElementTree loads no external entity, expat bounds the expansion of internal
# ones (since 2.4.1), and the size of a file is bounded below.
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError

from damoserve_compress.datasets.findings import FaultKind, Finding, malformed
from damoserve_compress.datasets.pictures import BoxAnnotation, Picture, PictureDataset, Scan
from damoserve_profiles.imaging import Size

_MAX_BYTES = 16 << 20


class VocDataset(PictureDataset):
    """The pictures of one split of a VOC folder.

    Boxes become (left, top, right, bottom) with right and bottom exclusive: VOC counts pixels from 1, ends included.
    Objects marked ``difficult`` are kept: they are objects, and COCO's average precision knows no such box.
    """

    def __init__(self, folder: Path, split: str, labels: Sequence[str] | None = None) -> None:
        """``labels`` are in the order of their indices; None takes the names in this split, sorted.

        Raises AnnotationsError where a file is missing or malformed, or names a class that is not among the labels.
        """
        super().__init__(scan_voc(folder, (split,), labels)[0])


class _VocRecord(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True)


class _Size(_VocRecord):
    width: PositiveInt
    height: PositiveInt


class _Corners(_VocRecord):
    xmin: FiniteFloat
    ymin: FiniteFloat
    xmax: FiniteFloat
    ymax: FiniteFloat


class _Object(_VocRecord):
    name: Annotated[str, Field(min_length=1)]
    bndbox: _Corners


@dataclass(frozen=True)
class _Entry:
    """An annotation file: its picture's size and its objects by their position in it, from 1."""

    name: str
    file: Path
    size: Size
    objects: dict[int, _Object]


def scan_voc(folder: Path, splits: Sequence[str], labels: Sequence[str] | None = None) -> list[Scan]:
    """Scans each split; all get the same labels: those given, or all names in these splits, sorted.

    Faults are findings; nothing is raised.
    """
    readers = [_SplitReader(folder, split) for split in splits]
    if labels is None:
        labels = sorted(
            {item.name for reader in readers for entry in reader.entries for item in entry.objects.values()}
        )
    return [reader.scan(tuple(labels)) for reader in readers]


class _SplitReader:
    """The entries of one split. Files that cannot be used become findings and are left out."""

    def __init__(self, folder: Path, split: str) -> None:
        self._folder = folder
        self._source = folder / "ImageSets" / "Main" / f"{split}.txt"
        self._findings: list[Finding] = []
        self.entries = list(self._read())

    def scan(self, labels: tuple[str, ...]) -> Scan:
        ranks = {label: rank for rank, label in enumerate(labels)}
        folder = self._folder / "JPEGImages"
        files = {path.stem: path for path in sorted(folder.iterdir(), reverse=True)} if folder.is_dir() else {}
        pictures = []
        for number, entry in enumerate(self.entries, 1):
            path = files.get(entry.name, folder / f"{entry.name}.jpg")
            pictures.append(Picture.from_annotations(number, path, entry.size, list(self._boxes(entry, ranks))))
        return Scan(self._source, labels, tuple(pictures), findings=tuple(self._findings))

    def _read(self) -> Iterator[_Entry]:
        for name in self._names():
            path = self._folder / "Annotations" / f"{name}.xml"
            try:
                root = _parse(path)
                size = _Size.model_validate(_fields(root.find("size")))
                yield _Entry(name, path, Size(size.width, size.height), dict(self._objects(path, root)))
            except FileNotFoundError:
                self._report(FaultKind.ANNOTATIONS, path, "no such annotation file")
            except ValidationError as error:
                self._findings.append(malformed(str(path), "size", error))
            except (LookupError, OSError, ValueError, ElementTree.ParseError) as error:
                self._report(FaultKind.ANNOTATIONS, path, f"cannot be read: {error}")

    def _objects(self, path: Path, root: Element) -> Iterator[tuple[int, _Object]]:
        for position, element in enumerate(root.iterfind("object"), 1):
            try:
                fields = _fields(element) | {"bndbox": _fields(element.find("bndbox"))}
                yield position, _Object.model_validate(fields)
            except ValidationError as error:
                self._findings.append(malformed(str(path), f"object {position}", error))

    def _names(self) -> list[str]:
        try:
            lines = self._source.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            self._report(FaultKind.ANNOTATIONS, self._source, "no such list of pictures")
            return []
        except (OSError, ValueError) as error:
            self._report(FaultKind.ANNOTATIONS, self._source, f"cannot be read: {error}")
            return []
        counts = Counter(name for line in lines if (name := line.strip()))
        for name, count in counts.items():
            if count > 1:
                self._report(FaultKind.DUPLICATE_PICTURE, self._source, f"{name} is given {count} times")
        return list(counts)

    def _boxes(self, entry: _Entry, ranks: dict[str, int]) -> Iterator[BoxAnnotation]:
        for position, item in entry.objects.items():
            if item.name in ranks:
                box = item.bndbox
                yield BoxAnnotation((box.xmin - 1, box.ymin - 1, box.xmax, box.ymax), ranks[item.name], position)
            else:
                self._report(FaultKind.UNKNOWN_CATEGORY, entry.file, f"unknown class {item.name}", position)

    def _report(self, kind: FaultKind, file: Path, message: str, annotation: int | None = None) -> None:
        self._findings.append(Finding(kind, str(file), message, annotation))


def _parse(path: Path) -> Element:
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"larger than {_MAX_BYTES} bytes")
    return ElementTree.parse(path).getroot()


def _fields(element: Element | None) -> dict[str, object]:
    """Reads the texts of an element's children, by their tags."""
    return {} if element is None else {child.tag: child.text for child in element}
