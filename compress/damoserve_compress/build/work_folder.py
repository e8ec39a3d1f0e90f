"""The work folder of a build, a cache of its steps: what was made from the same inputs is not made again.

Each result has a folder, named by its step and by a digest of the step's inputs. The record in it, written last, holds
the inputs and the SHA-256 of every file. A folder without a record is that of a step that was interrupted, which is
done again, and so is a step whose files have changed since.

The hashes that are computed for this, when a result is recorded or verified, go to the next step with the files.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from damoserve_profiles.files import replace_text
from damoserve_profiles.repository import describe_file

RECORD = "stage.json"


@dataclass(frozen=True)
class HashedFile:
    """A file and the SHA-256 that it had when it was last read."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class StepResult:
    """The files that a step has made, or had made before."""

    folder: Path
    hashes: Mapping[str, str]
    """SHA-256 by the name of the file."""

    def file(self, name: str) -> HashedFile:
        return HashedFile(self.folder / name, self.hashes[name])


@dataclass(frozen=True)
class WorkFolder:
    """The results of steps, in one folder."""

    path: Path
    report: Callable[[str], None] = print
    _verified: dict[Path, dict[str, str]] = field(default_factory=dict, init=False)
    """Hashes of the results that this object has made or found intact, by folder: they are not computed once more."""

    def run(self, step: str, inputs: Mapping[str, Any], make: Callable[[Path], None]) -> StepResult:
        """Gives what `make` wrote from `inputs`, which are plain values that say all that the result depends on.

        `make` is called with the folder to fill, unless that was done before. It may find there what an interrupted
        call left behind.
        """
        text = json.dumps(inputs, sort_keys=True)
        folder = self.path / f"{step}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        files = self._verified.get(folder) or _intact_files(folder)
        if files is not None:
            self.report(f"{step}: done before, in {folder}")
            self._verified[folder] = files
            return StepResult(folder, files)
        self.report(f"{step}: in {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        make(folder)
        files = {path.name: describe_file(path).sha256 for path in sorted(folder.iterdir()) if path.is_file()}
        files.pop(RECORD, None)
        record = {"inputs": inputs, "files": files, "seconds": round(time.perf_counter() - started, 1)}
        replace_text(folder / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
        self._verified[folder] = files
        return StepResult(folder, files)


def _intact_files(folder: Path) -> dict[str, str] | None:
    """Reads the hashes in a folder's record; None where it has no record, or the files are not as recorded."""
    try:
        files: dict[str, str] = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
        intact = files and all(describe_file(folder / name).sha256 == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return files if intact else None
