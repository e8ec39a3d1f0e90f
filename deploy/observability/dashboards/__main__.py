"""Writes the dashboards as JSON."""

import sys
from pathlib import Path

from deploy.observability.dashboards import files


def main(folder: Path) -> None:
    """Writes the dashboards into a folder. Raises OSError if that fails."""
    for name, text in files().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
