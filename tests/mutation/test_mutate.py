"""What is mutated, and what becomes of a mutant."""

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.mutation.mutate import mutants
from tests.mutation.rooms import ROOMS, ROOT


def changes(source: str) -> list[tuple[str, str]]:
    return [(mutant.old, mutant.new) for mutant in mutants("file.py", dedent(source))]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = a < b", ["x = a <= b", "x = a >= b"]),
        ("x = a is b", ["x = a is not b"]),
        ("x = a and b", ["x = a or b"]),
        ("x = a + b", ["x = a - b"]),
        ("x = not a", ["x = a"]),
        ("x = 0", ["x = 1"]),
        ("x = 0.5", ["x = 1.0"]),
        ("x = 0.0", ["x = 1.0"]),
        ("x = True", ["x = False"]),
        ("x = min(a)", ["x = max(a)"]),
        ("x = a.argmin()", ["x = a.argmax()"]),
        ("x = a[b:]", ["x = a[:]"]),
        ("x = a if b else c", ["x = a if not b else c"]),
        ("x = [a for a in b if c]", ["x = [a for a in b if not c]"]),
        ("x += a", ["x -= a", "pass"]),
        ("call()", ["pass"]),
        ("raise error", ["pass"]),
        ("self.x = a", ["pass"]),
        ("if a: pass", ["if not a:"]),
        ("'''Text.'''", []),
        ("x = 'text'", []),
        ("x: int | None", []),
        ("X = A | B", []),  # a union of types
        ("@dataclass(frozen=True)\nclass X(Y, z=1): pass", []),
        ("class X:\n    def __init__(self): self.x = a", []),  # would only be an AttributeError
    ],
)
def test_each_change_is_made_alone(source: str, expected: list[str]) -> None:
    assert [new for _, new in changes(source)] == expected


def test_a_mutant_is_the_whole_file_with_one_change_and_says_where_it_is() -> None:
    source = "class Box:\n\n    def full(self):\n        while self.n > 3:\n            return 1\n"
    found = list(mutants("box.py", source))
    assert [(mutant.where, mutant.old, mutant.new) for mutant in found] == [
        ("Box.full", "while self.n > 3:", "while self.n >= 3:"),
        ("Box.full", "while self.n > 3:", "while self.n <= 3:"),
        ("Box.full", "while self.n > 3:", "while self.n > 4:"),
        ("Box.full", "return 1", "return 2"),
    ]
    assert found[1].source == source.replace("> 3", "<= 3").rstrip("\n")


def test_changes_that_read_alike_are_numbered() -> None:
    found = list(mutants("file.py", "def f():\n    call()\n    call()\n"))
    assert [mutant.number for mutant in found] == [0, 1]
    assert len({mutant.name for mutant in found}) == 2


def test_every_room_has_its_source_and_tests() -> None:
    for room in ROOMS:
        assert list(mutants(room.file, room.source()))
        assert all((ROOT / test).is_file() for test in room.tests)


JUDGE = """
import os, sys
from pathlib import Path
from tests.mutation import runner
from tests.mutation.rooms import ROOMS

runner.prepare()
[room] = [room for room in ROOMS if room.file.endswith("selection.py")]
old, output = "if not least:", Path(sys.argv[1])
for new in (old, "if least:", "while True:\\n        pass\\n    if least:", "if 1 / 0:", "not Python"):
    process = runner.start(room, room.source().replace(old, new), runner.Limits(6, 60.0), output)
    print(runner.verdict_of(os.waitpid(process, 0)[1]))
"""


def test_a_mutant_is_judged_by_the_tests_of_its_room(tmp_path: Path) -> None:
    """In a process of its own, which has imported nothing yet."""
    judged = subprocess.run(
        [sys.executable, "-c", JUDGE, tmp_path / "output"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert judged.stdout.split() == ["survived", "caught", "stuck", "caught", "unfit"]


def test_every_listed_survivor_is_a_mutant_of_the_code_as_it_is() -> None:
    """A statement that was renamed would take its reason along unseen."""
    known = {mutant.name for room in ROOMS for mutant in mutants(room.file, room.source())}
    listed = json.loads((Path(__file__).with_name("survivors.json")).read_text())
    names = {(entry["file"], entry["where"], entry["old"], entry["new"], entry.get("number", 0)) for entry in listed}
    assert names <= known
    assert all(entry["reason"] for entry in listed)
