"""Results of a build that are kept: made once, and again when anything about them is wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from damoserve_compress.stages import RECORD, Stages


class Maker:
    """Writes its text, and counts how often it had to."""

    def __init__(self, text: str = "result") -> None:
        self.text = text
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "file.txt").write_text(self.text)


def test_the_same_inputs_are_not_worked_on_twice(tmp_path: Path) -> None:
    make = Maker()
    first = Stages(tmp_path).run("cut", {"a": 1, "b": [2]}, make)
    again = Stages(tmp_path).run("cut", {"b": [2], "a": 1}, make)
    assert first == again
    assert make.calls == 1
    assert (first / "file.txt").read_text() == "result"


def test_other_inputs_have_another_folder(tmp_path: Path) -> None:
    stages = Stages(tmp_path)
    folders = {
        stages.run(name, inputs, Maker()) for name, inputs in [("a", {"x": 1}), ("a", {"x": 2}), ("b", {"x": 1})]
    }
    assert len(folders) == 3


def test_an_interrupted_stage_is_done_again_and_finds_what_it_left(tmp_path: Path) -> None:
    def stop(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path).run("cut", {}, stop)
    make = Maker()
    folder = Stages(tmp_path).run("cut", {}, make)
    assert make.calls == 1
    assert (folder / "half.txt").exists()


def change(folder: Path) -> None:
    (folder / "file.txt").write_text("changed")


def remove(folder: Path) -> None:
    (folder / "file.txt").unlink()


def truncate(folder: Path) -> None:
    (folder / RECORD).write_text((folder / RECORD).read_text()[:20])


def empty(folder: Path) -> None:
    (folder / RECORD).write_text("[]")


@pytest.mark.parametrize("damage", [change, remove, truncate, empty])
def test_a_damaged_result_is_made_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    make = Maker()
    damage(Stages(tmp_path).run("cut", {}, make))
    folder = Stages(tmp_path).run("cut", {}, make)
    assert make.calls == 2
    assert (folder / "file.txt").read_text() == "result"


def test_the_record_says_what_went_in_and_what_came_out(tmp_path: Path) -> None:
    reports: list[str] = []
    folder = Stages(tmp_path, reports.append).run("cut", {"a": 1}, Maker())
    record = json.loads((folder / RECORD).read_text())
    assert record["inputs"] == {"a": 1}
    assert list(record["files"]) == ["file.txt"]
    Stages(tmp_path, reports.append).run("cut", {"a": 1}, Maker())
    assert "done before" in reports[-1]
