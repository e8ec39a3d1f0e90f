"""A small run of the fuzzer, and the example of docs/streaming.md, against the bundled model."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.process import RunningServer

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs/images/smear.jpg"


def fuzzer() -> Any:
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "benchmarks/fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


async def test_broken_requests_are_refused_and_the_server_serves_on(server: RunningServer) -> None:
    fuzz = fuzzer()
    own = fuzz.Server(server.address, server.metrics)
    before = own.faults()
    picture = Image.open(PICTURE).convert("RGB")
    picture.thumbnail((160, 160))
    tally = await fuzz.fuzz(server.address, 400, fuzz.Mutator(7, picture))
    await fuzz.good_calls([own], PICTURE.read_bytes(), 1)
    assert tally.failures == 0
    assert own.faults() == before
    assert min(tally.calls["OK"], tally.calls["INVALID_ARGUMENT"], tally.frames["INVALID_ARGUMENT"]) > 0


def test_the_example_of_the_page_on_streaming(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    example = re.search(r"```python\n(.+?)```", (ROOT / "docs/streaming.md").read_text(), re.DOTALL)
    assert example is not None
    exec(example[1].replace("127.0.0.1:50051", server.address), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2"]
    assert all("RBC" in line for line in lines)
