"""How a folder of training data may be laid out."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from damoserve_compress.cli import app
from damoserve_compress.datasets import LayoutError
from damoserve_compress.datasets.check import check
from damoserve_compress.datasets.folder import scan_folder
from tests.support.compress.data_folders import draw, write_good


def test_cocos_own_layout_is_read(tmp_path: Path) -> None:
    data = write_good(tmp_path)
    for name in ("train", "val"):
        draw(data / f"{name}2017" / f"{name}.png", shade=1)
        (data / "annotations").mkdir(exist_ok=True)
        (data / f"{name}.json").rename(data / "annotations" / f"instances_{name}2017.json")
    train, val = scan_folder(data)
    assert train.pictures[0].path == data / "train2017" / "train.png"
    assert val.pictures[0].path == data / "val2017" / "val.png"
    assert not check(train, val).errors
    (data / "annotations" / "instances_val2014.json").write_text("{}")
    with pytest.raises(LayoutError, match=r"exactly one instances_val\*\.json, found .*2014\.json, .*2017\.json"):
        scan_folder(data)
    for path in (data / "annotations").glob("*val*"):
        path.unlink()
    with pytest.raises(LayoutError, match=r"exactly one instances_val\*\.json, found none"):
        scan_folder(data)


@pytest.mark.parametrize("held_out", ["valid", "val"])
def test_roboflows_layout_is_read(tmp_path: Path, held_out: str) -> None:
    data = write_good(tmp_path)
    for old, new in (("train", "train"), ("val", held_out)):
        (data / new).mkdir()
        (data / "images" / f"{old}.png").rename(data / new / f"{old}.png")
        (data / f"{old}.json").rename(data / new / "_annotations.coco.json")
    train, val = scan_folder(data)
    assert train.pictures[0].path == data / "train" / "train.png"
    assert val.pictures[0].path == data / held_out / "val.png"
    assert not check(train, val).findings


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_vocs_layout_is_read(tmp_path: Path, held_out: str) -> None:
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (tmp_path / "Annotations").mkdir()
    for shade, split in enumerate(("train", held_out)):
        draw(tmp_path / "JPEGImages" / f"{split}.png", shade)
        (lists / f"{split}.txt").write_text(split)
        (tmp_path / "Annotations" / f"{split}.xml").write_text(
            "<annotation><size><width>100</width><height>80</height></size><object><name>a</name><bndbox>"
            "<xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"
        )
    report = check(*scan_folder(tmp_path))
    assert not report.findings
    assert [Path(summary.source).stem for summary in report.sets] == ["train", held_out]


def test_an_unknown_layout_is_told_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check", "--data", str(tmp_path)])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {tmp_path}: no data set found; looked for train.json")
