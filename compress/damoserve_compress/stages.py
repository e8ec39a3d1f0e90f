"""Steps of a build whose results are kept: what was made from the same inputs is not made again.

A stage's folder is named by a digest of its inputs. Its record, written last, holds the inputs and the SHA-256 of every
file; a stage without one was interrupted and is done again, one whose files have changed since too.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from damoserve_profiles.files import replace_text
from damoserve_profiles.repository import describe_file

RECORD = "stage.json"


@dataclass(frozen=True)
class Stages:
    """The results in one folder."""

    work: Path
    report: Callable[[str], None] = print

    def run(self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The folder that `make` filled from `inputs`, which are plain values that say all that the result depends on.

        `make` may find there what an interrupted call left behind.
        """
        text = json.dumps(inputs, sort_keys=True)
        folder = self.work / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        if _is_done(folder):
            self.report(f"{name}: done before, in {folder}")
            return folder
        self.report(f"{name}: in {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        make(folder)
        files = {path.name: describe_file(path).sha256 for path in sorted(folder.iterdir()) if path.is_file()}
        files.pop(RECORD, None)
        record = {"inputs": inputs, "files": files, "seconds": round(time.perf_counter() - started, 1)}
        replace_text(folder / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
        return folder


def _is_done(folder: Path) -> bool:
    try:
        files = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
        return bool(files) and all(describe_file(folder / name).sha256 == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
