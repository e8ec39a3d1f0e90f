"""Which changes of the code the tests of their room do not notice: `make mutation`.

Takes hours for everything; what is known is kept in `.cache/`, and a run that was ended goes on where it was. Fails
when a mutant survives that `survivors.json` does not name, or when fewer than nine of ten are caught.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from tests.mutation import runner
from tests.mutation.mutate import Mutant, mutants
from tests.mutation.rooms import ROOMS, ROOT, Room
from tests.mutation.runner import Limits, Verdict

SURVIVORS = Path(__file__).with_name("survivors.json")
KEPT = ROOT / ".cache" / "mutation"
LEAST = 0.9
EVERY = 25
NOTICED = {Verdict.CAUGHT, Verdict.STUCK}

Name = tuple[str, str, str, str, int]


@dataclass
class Results:
    """The verdicts so far, in a file that is only ever added to."""

    path: Path
    fingerprints: dict[str, str]
    keep_caught: bool
    _known: dict[Name, Verdict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            entry = json.loads(line)
            name, verdict = tuple(entry["name"]), Verdict(entry["verdict"])
            same = entry["fingerprint"] == self.fingerprints.get(name[0])
            if same or (self.keep_caught and verdict in NOTICED):
                self._known[name] = verdict

    def get(self, mutant: Mutant) -> Verdict | None:
        return self._known.get(mutant.name)

    def add(self, mutant: Mutant, verdict: Verdict) -> None:
        self._known[mutant.name] = verdict
        self.path.parent.mkdir(parents=True, exist_ok=True)
        entry = {"name": mutant.name, "verdict": verdict, "fingerprint": self.fingerprints[mutant.file]}
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def main(
    files: Annotated[
        list[str] | None, typer.Argument(help="Parts of the paths that are wanted; all otherwise.")
    ] = None,
    sample: Annotated[int, typer.Option(help="So many mutants of all, drawn by the seed; 0: every one.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 1,
    jobs: Annotated[int, typer.Option(help="Mutants at the same time.")] = 1,
    keep_caught: Annotated[
        bool, typer.Option(help="Runs only survivors again after a change: right while tests only come.")
    ] = False,
) -> None:
    """Exit code 1 when a mutant survives that is not on the list, or fewer than 90 % are caught."""
    rooms = [room for room in ROOMS if not files or any(part in room.file for part in files)]
    if not rooms:
        raise typer.BadParameter(f"there are {', '.join(room.file for room in ROOMS)}")
    runner.prepare()
    every = {room.file: list(mutants(room.file, room.source())) for room in rooms}
    chosen = [mutant for found in every.values() for mutant in found]
    if sample and sample < len(chosen):
        chosen = sorted(random.Random(seed).sample(chosen, sample), key=lambda mutant: mutant.name)
    results = Results(KEPT / "results.jsonl", {room.file: room.fingerprint() for room in rooms}, keep_caught)
    for room in rooms:
        _run(room, [mutant for mutant in chosen if mutant.file == room.file], results, jobs)
    raise typer.Exit(_report(chosen, results))


def _run(room: Room, wanted: Sequence[Mutant], results: Results, jobs: int) -> None:
    """Judges the mutants of a file that have no verdict yet."""
    left = [mutant for mutant in wanted if results.get(mutant) is None]
    print(f"{room.file}: {len(wanted)} mutants, {len(left)} to be run", flush=True)
    if not left:
        return
    KEPT.mkdir(parents=True, exist_ok=True)
    verdict, limits = runner.whole(room, KEPT / "whole.txt")
    if verdict is not Verdict.SURVIVED:
        print((KEPT / "whole.txt").read_text())
        raise typer.Exit(2)
    began = time.monotonic()
    for ended, (mutant, verdict) in enumerate(_judged(room, left, limits, jobs), 1):
        results.add(mutant, verdict)
        if verdict is Verdict.SURVIVED:
            print(f"  survived: {_shown(mutant)}", flush=True)
        if ended % EVERY == 0 or ended == len(left):
            each = (time.monotonic() - began) / ended
            print(f"  {ended} of {len(left)}, {each * (len(left) - ended) / 60:.0f} minutes to go", flush=True)


def _judged(room: Room, left: Sequence[Mutant], limits: Limits, jobs: int) -> Iterable[tuple[Mutant, Verdict]]:
    waiting = list(reversed(left))
    running: dict[int, float] = {}
    of: dict[int, Mutant] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            process = runner.start(room, mutant.source, limits, Path("/dev/null"))
            running[process], of[process] = time.monotonic() + limits.clock, mutant
        for process, verdict in runner.ends(running):
            del running[process]
            yield of.pop(process), verdict


def _report(chosen: Sequence[Mutant], results: Results) -> int:
    """Prints the shares and the survivors; the exit code."""
    verdicts = {mutant: results.get(mutant) for mutant in chosen}
    counts: dict[str, Counter[Verdict | None]] = {}
    for mutant, verdict in verdicts.items():
        counts.setdefault(mutant.file, Counter())[verdict] += 1
    total = sum(counts.values(), Counter())
    print(f"\n{'file':58} {'mutants':>8} {'caught':>7} {'share':>7} {'unfit':>6}")
    for file, found in [*counts.items(), ("all", total)]:
        noticed, all_ = _noticed(found)
        print(f"{file:58} {all_:8} {noticed:7} {noticed / max(all_, 1):7.1%} {found[Verdict.UNFIT]:6}")
    listed = {(*_name(entry), entry.get("number", 0)): entry["reason"] for entry in json.loads(SURVIVORS.read_text())}
    survivors = [mutant for mutant, verdict in verdicts.items() if verdict is Verdict.SURVIVED]
    new = [mutant for mutant in survivors if mutant.name not in listed]
    gone = listed.keys() & {mutant.name for mutant in chosen} - {mutant.name for mutant in survivors}
    print(
        f"\n{len(survivors)} survive, {len(survivors) - len(new)} of them for a reason that `{SURVIVORS.name}` gives."
    )
    for mutant in new:
        print(f"not on the list: {_shown(mutant)}")
    for name in sorted(gone):
        print(f"on the list, but caught: {name}")
    noticed, all_ = _noticed(total)
    return 1 if new or noticed < LEAST * all_ else 0


def _noticed(found: Counter[Verdict | None]) -> tuple[int, int]:
    """How many were caught, of how many that could be."""
    noticed = sum(found[verdict] for verdict in NOTICED)
    return noticed, noticed + found[Verdict.SURVIVED]


def _name(entry: dict[str, str]) -> tuple[str, str, str, str]:
    return entry["file"], entry["where"], entry["old"], entry["new"]


def _shown(mutant: Mutant) -> str:
    number = f" (number {mutant.number})" if mutant.number else ""
    return f"{mutant.file} {mutant.where}{number}\n    - {mutant.old}\n    + {mutant.new}"


if __name__ == "__main__":
    typer.run(main)
