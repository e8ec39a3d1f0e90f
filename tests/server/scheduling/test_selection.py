from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from damoserve_server.errors import AccuracyUnavailable
from damoserve_server.scheduling.selection import accurate_enough


@dataclass(frozen=True)
class Rated:
    accuracy: float


LADDER = [Rated(0.62), Rated(0.60), Rated(0.55)]


def test_only_those_accurate_enough_may_serve() -> None:
    assert accurate_enough(LADDER, 0.58) == (Rated(0.62), Rated(0.60))


def test_without_any_the_best_is_named() -> None:
    with pytest.raises(AccuracyUnavailable) as refusal:
        accurate_enough(LADDER, 0.7)
    assert refusal.value.details == {"min_accuracy": "0.7", "best_accuracy": "0.6200"}


@example(accuracy=0.6)
@given(accuracy=st.floats(0, 1))
def test_a_profile_has_the_accuracy_that_it_is_said_to_have(accuracy: float) -> None:
    asked = float(np.float32(accuracy))  # as protobuf carries it
    assert accurate_enough([Rated(accuracy)], asked) == (Rated(accuracy),)
