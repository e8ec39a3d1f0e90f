"""The check of a data set: one report names everything that is wrong, before anything else happens."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from damoserve_compress.cli import app
from damoserve_compress.commands.options import read_data
from damoserve_compress.datasets import DatasetError
from damoserve_compress.datasets.check import CheckReport, check
from damoserve_compress.datasets.findings import FaultKind, Finding
from damoserve_compress.datasets.folder import scan_folder
from damoserve_compress.datasets.pictures import BoxAnnotation, Picture, Placement
from damoserve_profiles.imaging import Size
from tests.support.compress.data_folders import CATEGORIES, Rows, box, draw, image, whole, write, write_good


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_good(tmp_path / "data")


def report_of(folder: Path) -> CheckReport:
    return check(*scan_folder(folder))


def found(folder: Path) -> dict[FaultKind, list[Finding]]:
    return report_of(folder).by_kind()


def spoil(folder: Path) -> None:
    """Makes a training set with many faults and an empty validation set."""
    pictures = folder / "images"
    draw(pictures / "good.png", shade=3)
    draw(pictures / "small.png", shade=4, size=(50, 80))
    draw(pictures / "short.png", shade=5)
    (pictures / "short.png").write_bytes((pictures / "short.png").read_bytes()[:-2000])
    (pictures / "text.png").write_text("no picture")
    names = ("good.png", "small.png", "short.png", "text.png", "absent.png")
    annotations: list[dict[str, object]] = [
        *whole(1),
        box(101, 1, [200, 10, 5, 5]),
        box(102, 1, [90, 70, 30, 30]),
        box(103, 1, [30, 30, 0, 10]),
        box(104, 1, [10, 10, 20, 20]),
        box(105, 1, [50, 50, 0.4, 10]),
        box(106, 1, [0, 0, 9, 9], category_id=7),
        box(107, 99, [0, 0, 9, 9]),
        box(108, 1, [0, 0, float("inf"), 9]),
        {"id": 109, "image_id": 1},
    ]
    write(folder / "train.json", [image(number, name) for number, name in enumerate(names, 1)], annotations)
    write(folder / "val.json", [], [], CATEGORIES[:1])


def test_a_good_set_has_no_findings(data: Path) -> None:
    report = report_of(data)
    assert (report.findings, report.errors) == ((), ())
    assert [summary.boxes for summary in report.sets] == [{"a": 1, "b": 1}] * 2
    assert str(report).splitlines()[-1] == "errors: 0, warnings: 0"


FAULTS = {
    FaultKind.MISSING_PICTURE: "absent.png",
    FaultKind.UNREADABLE_PICTURE: "short.png",
    FaultKind.WRONG_SIZE: "is 50x80, annotated as 100x80",
    FaultKind.UNKNOWN_CATEGORY: "annotation 106: unknown category id 7 in good.png",
    FaultKind.UNKNOWN_PICTURE: "annotation 107: unknown image id 99",
    FaultKind.NOT_FINITE: "annotations[9]: bbox.2",
    FaultKind.MALFORMED: "annotations[10]: category_id: Field required; bbox: Field required",
    FaultKind.NO_PICTURES: "val.json",
    FaultKind.LABELS_DIFFER: "only in",
    FaultKind.OUTSIDE: "annotation 101: (200, 10, 205, 15) in 100x80",
    FaultKind.CLIPPED: "annotation 102: (90, 70, 120, 100) in 100x80",
    FaultKind.EMPTY: "annotation 103",
    FaultKind.REPEATED_BOX: "annotation 104",
    FaultKind.TINY: "annotation 105",
    FaultKind.UNBOXED: "small.png",
}


def test_one_report_lists_every_fault(data: Path) -> None:
    spoil(data)
    report = report_of(data)
    text = str(report)
    for kind, example in FAULTS.items():
        assert kind.title in text
        assert example in text
    assert set(report.by_kind()) == set(FAULTS)
    assert len(report.by_kind()[FaultKind.UNREADABLE_PICTURE]) == 2
    assert len(report.by_kind()[FaultKind.UNBOXED]) == 4
    assert report.sets[0].boxes == {"a": 4, "b": 1}


def test_training_stops_before_the_first_step_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    spoil(data)
    out = tmp_path / "out"
    arguments = ["train", "--model", "m", "--data", str(data), "--out", str(out), "--size", "64", "--epochs", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {data} cannot be used:\n")
    assert all(example in result.stderr for example in FAULTS.values())
    assert not out.exists()


def test_the_command_reports_and_fails(data: Path) -> None:
    arguments = ["check", "--data", str(data)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    spoil(data)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert result.stdout.rstrip() == str(report_of(data))
    document = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert len(document["findings"]) == len(report_of(data).findings)
    assert {
        "severity": "error",
        "kind": "outside",
        "file": str(data / "images" / "good.png"),
        "annotation": 101,
        "message": "(200, 10, 205, 15) in 100x80",
    } in document["findings"]
    assert document["sets"][0]["boxes"] == {"a": 4, "b": 1}


def test_a_long_list_is_cut_short_in_the_text_only(data: Path) -> None:
    write(data / "train.json", [image(1, "train.png")], whole(1) + [box(i, 1, [90, 0, 11, i]) for i in range(9, 40)])
    report = report_of(data)
    assert len(report.by_kind()[FaultKind.CLIPPED]) == 31
    assert "... and 21 more" in str(report)


def test_warnings_are_told_in_short_and_do_not_stop(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(data / "val.json", [image(1, "train.png")], [*whole(1), box(3, 1, [90, 0, 11, 9]), box(4, 1, [90, 0, 12, 9])])
    picture = data / "images" / "train.png"
    train, val = read_data(data)
    assert [len(dataset[0].boxes) for dataset in (train, val)] == [2, 4]
    assert capsys.readouterr().err.splitlines() == [
        f"Warning: {FaultKind.CLIPPED.title}: 2, first {picture}, annotation 3: (90, 0, 101, 9) in 100x80",
        f"Warning: {FaultKind.LEAK.title}: 1, first {picture}: the same pixels as {picture}",
    ]
    assert CliRunner().invoke(app, ["check", "--data", str(data)]).exit_code == 0


def test_data_with_errors_is_not_handed_out(data: Path) -> None:
    spoil(data)
    with pytest.raises(DatasetError) as caught:
        read_data(data)
    assert str(caught.value) == f"{data} cannot be used:\n{report_of(data)}"


def test_copies_of_a_picture_are_found_by_their_pixels(data: Path) -> None:
    pixels = cv2.imread(str(data / "images" / "train.png"))
    cv2.imwrite(str(data / "images" / "again.bmp"), pixels)
    write(data / "train.json", [image(1, "train.png"), image(2, "again.bmp")], whole(1) + whole(2))
    (repeated,) = found(data)[FaultKind.REPEATED_PICTURE]
    assert repeated.file.endswith("again.bmp")
    assert repeated.message.endswith("train.png")


@pytest.mark.parametrize(
    ("categories", "kind"),
    [
        (CATEGORIES[::-1], FaultKind.CATEGORY_ORDER),
        ([{"id": 1, "name": "a"}, {"id": 5, "name": "b"}], FaultKind.CATEGORY_ORDER),
        ([{"id": 1, "name": "b"}, {"id": 2, "name": "a"}], FaultKind.LABELS_DIFFER),
        ([*CATEGORIES, {"id": 3, "name": "c"}], FaultKind.LABELS_DIFFER),
        ([*CATEGORIES, {"id": 2, "name": "c"}], FaultKind.DUPLICATE_CATEGORY),
    ],
)
def test_categories_are_compared(data: Path, categories: Rows, kind: FaultKind) -> None:
    annotations = [*whole(1), box(3, 1, [0, 0, 9, 9], category_id=categories[-1]["id"])]
    write(data / "val.json", [image(1, "val.png")], annotations, categories)
    assert kind in found(data)


def test_sets_without_boxes_or_classes_are_found(data: Path) -> None:
    write(data / "train.json", [image(1, "train.png")], [box(1, 1, [5, 5, 9, 9], iscrowd=1)])
    write(data / "val.json", [image(1, "val.png")], [box(1, 1, [5, 5, 9, 9])])
    report = report_of(data)
    assert [str(finding) for finding in report.by_kind()[FaultKind.NO_BOXES]] == [str(data / "train.json")]
    assert [finding.message for finding in report.by_kind()[FaultKind.UNUSED_LABEL]] == ["b"]
    assert "crowd regions left out: 1" in str(report)


@pytest.mark.parametrize("spoilt", [b"{ broken", b"[]", b"{}", None])
def test_an_unreadable_file_does_not_hide_the_other(data: Path, spoilt: bytes | None) -> None:
    (data / "train.json").unlink()
    if spoilt is not None:
        (data / "train.json").write_bytes(spoilt)
    (data / "images" / "val.png").unlink()
    assert set(found(data)) == {FaultKind.ANNOTATIONS, FaultKind.MISSING_PICTURE}


def test_progress_counts_every_picture(data: Path) -> None:
    steps: list[tuple[int, int]] = []
    check(*scan_folder(data), progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]


NUMBERS = st.one_of(st.integers(-50, 150).map(float), st.floats(allow_nan=False, allow_infinity=False))


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=8))
def test_every_box_is_kept_with_area_within_the_frame_or_dropped_for_a_reason(
    corners: list[tuple[float, float, float, float]],
) -> None:
    picture = Picture.from_annotations(
        1, Path("one.png"), Size(100, 80), [BoxAnnotation(given, 0, None) for given in corners]
    )
    with np.errstate(over="ignore"):
        rounded = np.array(corners).reshape(-1, 4).astype(np.float32).tolist()
    boxes, placements = picture.clipped_boxes()
    assert boxes.shape == (len(corners), 4)
    for kept, placement, (left, top, right, bottom) in zip(boxes.tolist(), placements.tolist(), rounded, strict=True):
        area = max(0, min(right, 100) - max(left, 0)) * max(0, min(bottom, 80) - max(top, 0))
        if placement <= Placement.CLIPPED:
            assert 0 <= kept[0] < kept[2] <= 100
            assert 0 <= kept[1] < kept[3] <= 80
            assert (placement == Placement.INSIDE) == (kept == [left, top, right, bottom])
        else:
            assert area == 0
            assert (placement == Placement.EMPTY) == (right <= left or bottom <= top)
