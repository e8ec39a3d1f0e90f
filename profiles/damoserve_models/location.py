"""Where the bundled models lie."""

from pathlib import Path

REPOSITORY = Path(__file__).with_name("repository")
"""Folder of models. Only an installed wheel has it here; in the source tree it lies beside this package."""
