"""Results of steps are made once, and again when anything about them is wrong."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from damoserve_compress.build.work_folder import RECORD, WorkFolder


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
    first = WorkFolder(tmp_path).run("cut", {"a": 1, "b": [2]}, make)
    again = WorkFolder(tmp_path).run("cut", {"b": [2], "a": 1}, make)
    assert first == again
    assert make.calls == 1
    assert first.file("file.txt").path.read_text() == "result"


def test_other_inputs_have_another_folder(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path)
    folders = {
        work.run(step, inputs, Maker()).folder for step, inputs in [("a", {"x": 1}), ("a", {"x": 2}), ("b", {"x": 1})]
    }
    assert len(folders) == 3


def test_an_interrupted_step_is_done_again_and_finds_what_it_left(tmp_path: Path) -> None:
    def stop(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        WorkFolder(tmp_path).run("cut", {}, stop)
    make = Maker()
    folder = WorkFolder(tmp_path).run("cut", {}, make).folder
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
    damage(WorkFolder(tmp_path).run("cut", {}, make).folder)
    folder = WorkFolder(tmp_path).run("cut", {}, make).folder
    assert make.calls == 2
    assert (folder / "file.txt").read_text() == "result"


def test_the_record_says_what_went_in_and_what_came_out(tmp_path: Path) -> None:
    reports: list[str] = []
    folder = WorkFolder(tmp_path, reports.append).run("cut", {"a": 1}, Maker()).folder
    record = json.loads((folder / RECORD).read_text())
    assert record["inputs"] == {"a": 1}
    assert list(record["files"]) == ["file.txt"]
    WorkFolder(tmp_path, reports.append).run("cut", {"a": 1}, Maker())
    assert "done before" in reports[-1]


def test_a_file_comes_with_its_hash_whether_it_was_made_or_found(tmp_path: Path) -> None:
    results = [WorkFolder(tmp_path).run("cut", {}, Maker()).file("file.txt") for _ in range(2)]
    assert {file.sha256 for file in results} == {hashlib.sha256(b"result").hexdigest()}
