"""`damoserve-compress report` on the bundled model."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import cv2
import pytest
from typer.testing import CliRunner, Result

import damoserve_compress.report.measure as measuring
from damoserve_compress.cli import app
from damoserve_compress.datasets.coco import write_coco
from damoserve_compress.datasets.rendered import RenderedSmears

PROFILES = ("fp32", "int8", "pruned", "int8+pruned")


class Links(HTMLParser):
    """Everything that a page takes from elsewhere, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sources: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [
            (tag, value) for name, value in attrs if value and name in ("src", "href", "xlink:href", "srcset", "data")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def one_engine() -> Iterator[None]:
    """OpenVINO compiles for seconds; what differs between engines is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "installed_engines", lambda: ("onnxruntime",))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    annotations = write_coco(RenderedSmears(3, seed=1, size=(320, 240)), folder)
    for name in ("train.json", "val.json"):
        (folder / name).write_bytes(annotations.read_bytes())
    return folder


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"DAMOSERVE_DATA": None}).invoke(app, ["report", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(data: Path, one_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    plot = folder / "pareto.png"
    result = run("--out", folder, "--plot", plot, "--data", data, "--rounds", "2", "--images", "2")
    assert result.exit_code == 0, result.output
    return folder


def test_the_page_needs_nothing_from_elsewhere(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    sources = Links(page).sources
    assert sum(value.startswith("data:image/jpeg;base64,") for tag, value in sources if tag == "img") == 8
    assert all(value.startswith(("data:", "#")) for _, value in sources)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "<script" not in page


def test_both_forms_name_every_profile_and_section(folder: Path) -> None:
    for text in (Links((folder / "report.html").read_text()).text, (folder / "report.md").read_text()):
        for profile in PROFILES:
            assert re.search(rf"(?<![\w+]){re.escape(profile)}(?![\w+])", text)
        for title in ("Results", "Pareto plots", "The article's table beside ours", "Detections", "How to repeat it"):
            assert title in text
        assert "as published: computed, not measured" in text


def test_every_difference_has_its_interval_and_every_speed_its_spread(folder: Path) -> None:
    rows = [line.split(" | ") for line in (folder / "report.md").read_text().splitlines() if line.startswith("| ")]
    results = {row[0].removeprefix("| "): row for row in rows[2:6]}
    assert tuple(results) == PROFILES
    interval = r"[+-]\d+\.\d\d \([+-]\d+\.\d\d to [+-]\d+\.\d\d\)"
    for profile, row in results.items():
        assert row[2] == "–" if profile == "fp32" else re.fullmatch(interval, row[2])
        assert re.fullmatch(r"\d+\.\d\dx \(\d+\.\d\d to \d+\.\d\d\)", row[7])
    assert results["fp32"][7] == "1.00x (1.00 to 1.00)"
    assert results["int8+pruned"][7] != results["fp32"][7]


def test_accuracy_on_other_images_than_the_manifests_is_told(folder: Path) -> None:
    text = (folder / "report.md").read_text()
    assert "AP is COCO's, on 3 validation images, measured for this report." in text
    assert "while its manifest has 62.51 on bccd/val" in text


def test_what_is_missing_is_told(folder: Path) -> None:
    left_out = (folder / "report.md").read_text().split("## Left out")[1]
    assert "Naive settings: give --naive" in left_out
    assert "Pruning: give --work" in left_out
    assert "Detections" not in left_out


def test_the_files_are_pictures(folder: Path) -> None:
    for path in (folder / "pareto.png", *(folder / "images").glob("*.jpg")):
        picture = cv2.imread(str(path))
        assert picture is not None
        assert picture.std() > 5
    assert len(list((folder / "images").glob("sample-*.jpg"))) == 8


def test_the_plot_alone_takes_accuracy_from_the_manifests(tmp_path: Path, one_engine: None) -> None:
    plot = tmp_path / "images" / "pareto.svg"
    result = run("--plot", plot, "--rounds", "1")
    assert result.exit_code == 0, result.output
    text = plot.read_text()
    assert all(f">{profile}<" in text for profile in PROFILES)
    assert [path.name for path in tmp_path.rglob("*")] == ["images", "pareto.svg"]


def test_somewhere_to_write_is_needed() -> None:
    result = run()
    assert result.exit_code == 2
    assert "--plot FILE" in result.stderr


def test_what_cannot_be_written_is_told_before_anything_is_timed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("--plot", tmp_path / "file" / "pareto.svg")
    assert result.exit_code == 1
    assert "Error: " in result.stderr
    assert "timing" not in result.stderr


def test_naive_settings_need_the_float_network_as_reference(tmp_path: Path) -> None:
    (tmp_path / "naive.json").write_text("{}")
    result = run("--out", tmp_path, "--naive", tmp_path / "naive.json", "--reference", "int8")
    assert result.exit_code == 1
    assert "--reference takes a profile that is neither cut nor in 8 bits" in result.stderr


def test_other_kinds_of_plots_are_refused_before_anything_is_timed(tmp_path: Path) -> None:
    result = run("--plot", tmp_path / "pareto.bmp")
    assert result.exit_code == 1
    assert "written as .png or .svg" in result.stderr
    assert "timing" not in result.stderr
