"""Lists of labels: text files with one name a line, in the order of a network's classes.

LabelsError (ValueError)   the file cannot be read, is empty or names a label twice
"""

from pathlib import Path
from typing import Final

COCO_LABELS: Final = Path(__file__).with_name("coco_labels.txt")
"""The 80 categories of COCO's detection task, by rank of their ids."""


class LabelsError(ValueError):
    """The list cannot be used."""


def read_labels(path: Path) -> tuple[str, ...]:
    """The names in a file; blank lines do not count. Raises LabelsError."""
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeError) as error:
        raise LabelsError(f"{path} is not a readable list of labels: {error}") from error
    labels = tuple(name for name in names if name)
    if not labels:
        raise LabelsError(f"{path} holds no label; it must have one on each line")
    if repeated := sorted({name for name in labels if labels.count(name) > 1}):
        raise LabelsError(f"{path} has labels more than once: {', '.join(repeated)}")
    return labels
