"""Files that are replaced in one step, and folders that come with the package."""

import os
from collections.abc import Callable
from pathlib import Path

PACKAGE = Path(__file__).parent


def bundled(name: str) -> Path:
    """Returns a folder that comes with this package: inside it in a wheel, beside it in the source tree."""
    return PACKAGE / name if (PACKAGE / name).is_dir() else PACKAGE.parent / name


def bundled_models() -> Path:
    """Returns the repository of the bundled models: beside this package in the source tree, else `damoserve-models`'s.

    Where neither is there, the folder that an install of `damoserve-models` would fill.
    """
    in_source_tree = not (PACKAGE / "recipes").is_dir()  # beside a wheel's package lies whatever else is installed
    if in_source_tree and (PACKAGE.parent / "repository").is_dir():
        return PACKAGE.parent / "repository"
    try:
        from damoserve_models import REPOSITORY
    except ImportError:
        return PACKAGE.parent / "damoserve_models" / "repository"
    return REPOSITORY


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
