"""A processor that computes floats in 32 bits only."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from damoserve_compress.measure import runtime


class Core:
    """OpenVINO's, as far as it is asked about the processor."""

    def get_property(self, device: str, name: str) -> list[str]:
        return ["FP32"]


def old_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the test ends, OpenVINO is there, and says so."""
    module = ModuleType("openvino")
    module.__spec__ = ModuleSpec("openvino", None)
    monkeypatch.setitem(sys.modules, "openvino", module)
    monkeypatch.setattr(runtime, "openvino_core", Core)
