import io
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.support.fake_server import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def smear() -> bytes:
    """A light picture of 200 x 150 pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (200, 150), "#f4ecec").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def smear_file(tmp_path: Path, smear: bytes) -> Path:
    path = tmp_path / "smear.png"
    path.write_bytes(smear)
    return path


@pytest.fixture
def unused_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def silent_address() -> Iterator[str]:
    """Takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
