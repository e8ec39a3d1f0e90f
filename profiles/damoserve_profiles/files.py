"""Files that are replaced in one step, and folders that come with the package."""

import os
from collections.abc import Callable
from pathlib import Path


def bundled(name: str) -> Path:
    """Returns a folder that comes with this package: inside it in a wheel, beside it in the source tree."""
    package = Path(__file__).parent
    return package / name if (package / name).is_dir() else package.parent / name


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Fills a temporary file by `write`, then puts it at `path` in one step: there is never half a file."""
    temporary = path.with_name(f".{path.name}.partial")
    write(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())  # or a power cut could leave the new name on an empty file
    os.replace(temporary, path)


def replace_text(path: Path, text: str) -> None:
    """Puts a text file, UTF-8, at `path` in one step."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
