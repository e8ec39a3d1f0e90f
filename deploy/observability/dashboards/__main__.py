"""Writes the dashboards as JSON."""

import sys
from pathlib import Path

from deploy.observability.dashboards import files


def main(folder: Path) -> None:
    """Raises OSError if the folder cannot be written to."""
    for name, text in files().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
