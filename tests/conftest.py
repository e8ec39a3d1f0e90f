"""What all tests share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the BCCD data set."""
    folder = os.environ.get("DAMOSERVE_DATA")
    if not folder:
        pytest.skip("DAMOSERVE_DATA does not name the folder of the BCCD data set")
    return Path(folder)
