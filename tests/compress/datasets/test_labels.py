"""Lists of labels."""

from pathlib import Path

import pytest

from damoserve_compress.datasets.labels import COCO_LABELS, LabelsError, read_labels


def test_coco_has_80_labels() -> None:
    coco = read_labels(COCO_LABELS)
    assert len(coco) == 80
    assert (coco[0], coco[-1]) == ("person", "toothbrush")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n \n", "holds no label"), (b"a\nb\na\n", "more than once: a"), (b"\xff\xfe", "not a readable list")],
)
def test_lists_of_labels_that_cannot_be_used_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(LabelsError, match=message):
        read_labels(path)


def test_a_byte_order_mark_is_no_part_of_the_first_label(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("RBC\nWBC\n", encoding="utf-8-sig")
    assert read_labels(path) == ("RBC", "WBC")
