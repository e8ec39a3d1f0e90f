"""Pascal VOC data: its pixels are counted from 1, its folders hold what other tools leave there."""

from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from damoserve_compress.datasets import AnnotationsError, Dataset, MissingPicture
from damoserve_compress.datasets.findings import FaultKind
from damoserve_compress.datasets.voc import VocDataset, scan_voc

Object = tuple[str, tuple[object, object, object, object]]


def annotation(objects: list[Object], size: tuple[int, int] = (100, 80)) -> str:
    items = "".join(
        f"<object><name>{escape(name)}</name><difficult>1</difficult>"
        f"<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
        f"<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for name, box in objects
    )
    width, height = size
    return (
        "<annotation><filename>elsewhere.jpg</filename>"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>{items}</annotation>"
    )


def add(folder: Path, split: str, name: str, objects: list[Object], suffix: str = ".jpg") -> None:
    """One picture of 100 x 80 with its annotation, at the end of a split."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    shade = sum(name.encode()) % 256
    cv2.imwrite(str(folder / "JPEGImages" / f"{name}{suffix}"), np.full((80, 100, 3), shade, np.uint8))
    (folder / "Annotations" / f"{name}.xml").write_text(annotation(objects))
    with (folder / "ImageSets" / "Main" / f"{split}.txt").open("a") as lines:
        lines.write(f"{name}\n")


def test_a_split_is_read(tmp_path: Path) -> None:
    add(tmp_path, "train", "img.one", [("dog", (1, 1, 100, 80)), (" cat ", ("10.5", 20, 30, 40))])
    add(tmp_path, "train", "two", [], suffix=".PNG")
    dataset: Dataset = VocDataset(tmp_path, "train")
    assert (len(dataset), dataset.labels) == (2, ("cat", "dog"))
    first, second = dataset[0], dataset[1]
    assert first.boxes.tolist() == [[0, 0, 100, 80], [9.5, 19, 30, 40]]
    assert first.labels.tolist() == [1, 0]
    assert first.image.shape == (80, 100, 3)
    assert (second.boxes.shape, second.labels.shape) == ((0, 4), (0,))
    assert [first.identifier, second.identifier] == [1, 2]


@given(st.tuples(st.integers(1, 100), st.integers(1, 80)), st.tuples(st.integers(1, 100), st.integers(1, 80)))
def test_a_box_holds_the_pixels_that_it_names(
    tmp_path_factory: pytest.TempPathFactory, first: tuple[int, int], second: tuple[int, int]
) -> None:
    (left, right), (top, bottom) = (sorted(pair) for pair in zip(first, second, strict=True))
    folder = tmp_path_factory.mktemp("voc", numbered=True)
    add(folder, "train", "one", [("a", (left, top, right, bottom))])
    box = VocDataset(folder, "train")[0].boxes[0].astype(int)
    named = np.zeros((80, 100), bool)
    named[[y - 1 for y in range(top, bottom + 1)], left - 1] = True
    named[top - 1, [x - 1 for x in range(left, right + 1)]] = True
    rows, columns = np.nonzero(named)
    assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_labels_are_shared_by_the_splits_or_given(tmp_path: Path) -> None:
    add(tmp_path, "train", "one", [("dog", (1, 1, 5, 5))])
    add(tmp_path, "val", "two", [("cat", (1, 1, 5, 5))])
    assert [scan.labels for scan in scan_voc(tmp_path, ("train", "val"))] == [("cat", "dog")] * 2
    assert VocDataset(tmp_path, "val").labels == ("cat",)
    given_labels = VocDataset(tmp_path, "train", ["zebra", "dog"])
    assert given_labels[0].labels.tolist() == [1]
    with pytest.raises(AnnotationsError, match=r"two\.xml, annotation 1: unknown class cat"):
        VocDataset(tmp_path, "val", ["dog"])


def test_a_missing_picture_is_named_when_asked_for(tmp_path: Path) -> None:
    add(tmp_path, "train", "one", [])
    (tmp_path / "JPEGImages" / "one.jpg").unlink()
    with pytest.raises(MissingPicture, match=r"JPEGImages.one\.jpg: no such picture"):
        VocDataset(tmp_path, "train")[0]


def test_every_fault_is_found_in_one_go(tmp_path: Path) -> None:
    names = ("good", "absent", "broken", "sizeless", "nameless", "endless", "klingon")
    for name in names:
        add(tmp_path, "train", name, [("a", (1, 1, 5, 5))])
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("\n".join((*names, "", "good", "")))
    notes = tmp_path / "Annotations"
    (notes / "absent.xml").unlink()
    (notes / "broken.xml").write_text("<annotation><size>")
    (notes / "klingon.xml").write_text('<?xml version="1.0" encoding="klingon"?><annotation/>')
    (notes / "sizeless.xml").write_text("<annotation/>")
    (notes / "nameless.xml").write_text(annotation([("", (1, 1, 5, 5)), ("a", (1, "one", 5, 5))]))
    (notes / "endless.xml").write_text(annotation([("a", (1, "inf", 5, 5)), ("a", (1, 1, 5, 5))]))
    (scan,) = scan_voc(tmp_path, ("train",))
    assert [(finding.kind, Path(finding.file).stem) for finding in scan.findings] == [
        (FaultKind.DUPLICATE_PICTURE, "train"),
        (FaultKind.ANNOTATIONS, "absent"),
        (FaultKind.ANNOTATIONS, "broken"),
        (FaultKind.MALFORMED, "sizeless"),
        (FaultKind.MALFORMED, "nameless"),
        (FaultKind.MALFORMED, "nameless"),
        (FaultKind.NOT_FINITE, "endless"),
        (FaultKind.ANNOTATIONS, "klingon"),
    ]
    told = [str(finding) for finding in scan.findings]
    assert "width: Field required; height: Field required" in told[3]
    assert "object 2: bndbox.ymin" in told[5]
    assert [picture.path.stem for picture in scan.pictures] == ["good", "nameless", "endless"]
    assert len(scan.pictures[2].corners) == 1


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(AnnotationsError, match=r"trainval\.txt: no such list of pictures"):
        VocDataset(tmp_path, "trainval")


def test_entities_neither_expand_nor_load(tmp_path: Path) -> None:
    add(tmp_path, "train", "one", [])
    path = tmp_path / "Annotations" / "one.xml"
    secret = tmp_path / "secret"
    secret.write_text("100")
    body = annotation([("a", ("NUMBER", 1, 5, 5))]).replace("NUMBER", "&x;")
    path.write_text(f'<!DOCTYPE a [<!ENTITY x SYSTEM "{secret.as_uri()}">]>{body}')
    with pytest.raises(AnnotationsError, match="undefined entity"):
        VocDataset(tmp_path, "train")
    bomb = "".join(f'<!ENTITY x{level} "{f"&x{level - 1};" * 50}">' for level in range(1, 8))
    path.write_text(f'<!DOCTYPE a [<!ENTITY x0 "0123456789">{bomb}<!ENTITY x "&x7;">]>{body}')
    with pytest.raises(AnnotationsError, match="cannot be read"):
        VocDataset(tmp_path, "train")
    path.write_bytes(b" " * (16 << 20) + path.read_bytes())
    with pytest.raises(AnnotationsError, match="larger than"):
        VocDataset(tmp_path, "train")
