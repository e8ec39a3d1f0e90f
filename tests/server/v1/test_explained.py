"""The examples in the docstrings of the window and of the stream are right."""

import doctest
from dataclasses import dataclass
from math import inf
from types import ModuleType

import pytest

from damoserve_server.v1 import stream, window


@pytest.mark.parametrize("module", [window, stream], ids=lambda module: module.__name__)
def test_the_example_is_right(module: ModuleType) -> None:
    results = doctest.testmod(module, extraglobs={"dataclass": dataclass, "inf": inf}, raise_on_error=True)
    assert results.attempted >= 3
