"""What all tests share."""

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A machine that is busy is no fault of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("openvino") and importlib.util.find_spec("openvino") is None:
        pytest.skip("needs the extra openvino")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """What coroutines among the tests run on: the server's own event loop, not trio as well."""
    return "asyncio"


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the BCCD data set."""
    folder = os.environ.get("DAMOSERVE_DATA")
    if not folder:
        pytest.skip("DAMOSERVE_DATA does not name the folder of the BCCD data set")
    return Path(folder)
