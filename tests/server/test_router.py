import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from damoserve_server.errors import AccuracyUnavailable, DeadlineUnreachable
from damoserve_server.router import Candidate, Choice, Reason, Wish, choose

LADDER = [
    Candidate("fp32", accuracy=0.62, seconds=0.090),
    Candidate("int8", accuracy=0.60, seconds=0.030),
    Candidate("pruned", accuracy=0.58, seconds=0.040),
    Candidate("int8+pruned", accuracy=0.55, seconds=0.010),
]


@pytest.mark.parametrize(
    ("wish", "profile", "reason"),
    [
        (Wish(budget=10, objective=1), "fp32", Reason.MOST_ACCURATE_IN_TIME),
        (Wish(budget=10, objective=0.04), "int8", Reason.MOST_ACCURATE_IN_TIME),
        (Wish(budget=0.04, objective=1), "int8", Reason.MOST_ACCURATE_IN_TIME),
        (Wish(budget=10, objective=0.02), "int8+pruned", Reason.MOST_ACCURATE_IN_TIME),
        (Wish(budget=10, objective=0.001), "int8+pruned", Reason.QUICKEST),
        (Wish(budget=10, objective=0.001, min_accuracy=0.56), "int8", Reason.QUICKEST),
        (Wish(budget=10, objective=-1, min_accuracy=0.61), "fp32", Reason.QUICKEST),
    ],
)
def test_choice(wish, profile, reason):
    assert choose(LADDER, wish) == Choice(profile, reason)


def test_a_named_profile_is_held_to_the_budget_only():
    assert choose(LADDER[:1], Wish(budget=0.1)) == Choice("fp32", Reason.REQUESTED)
    with pytest.raises(DeadlineUnreachable):
        choose(LADDER[:1], Wish(budget=0.08))


def test_refusals():
    with pytest.raises(DeadlineUnreachable) as refusal:
        choose(LADDER, Wish(budget=0.005, objective=1))
    assert refusal.value.details == {"expected_ms": "10.0", "budget_ms": "5.0"}
    with pytest.raises(DeadlineUnreachable):
        choose(LADDER, Wish(budget=0.02, objective=1, min_accuracy=0.6))
    with pytest.raises(AccuracyUnavailable) as refused:
        choose(LADDER, Wish(budget=10, objective=1, min_accuracy=0.7))
    assert refused.value.details == {"min_accuracy": "0.7", "best_accuracy": "0.6200"}


def test_of_equally_accurate_ones_the_quicker():
    twins = [Candidate("a", 0.5, 0.03), Candidate("b", 0.5, 0.02)]
    assert choose(twins, Wish(budget=10, objective=1)).profile == "b"


fractions = st.floats(0, 1)
ladders = st.lists(st.tuples(fractions, fractions), min_size=1, max_size=6).map(
    lambda pairs: [Candidate(index, accuracy, seconds) for index, (accuracy, seconds) in enumerate(pairs)]
)


@given(ladders, st.builds(Wish, fractions, fractions, fractions))
def test_the_choice_is_allowed_and_none_is_better(candidates, wish):
    least = np.float32(wish.min_accuracy)
    allowed = [c for c in candidates if np.float32(c.accuracy) >= least and c.seconds <= wish.budget]
    try:
        choice = choose(candidates, wish)
    except (AccuracyUnavailable, DeadlineUnreachable):
        assert not allowed
        return
    chosen = candidates[choice.profile]
    assert chosen in allowed
    in_time = [c for c in allowed if c.seconds <= wish.objective]
    if choice.reason is Reason.MOST_ACCURATE_IN_TIME:
        assert chosen in in_time
        assert chosen.accuracy == max(c.accuracy for c in in_time)
    else:
        assert not in_time
        assert chosen.seconds == min(c.seconds for c in allowed)


@given(fractions)
@example(0.6)  # more in single precision
@example(0.7)  # less
@example(0.12345649)  # more when rounded to six places
def test_a_profile_is_found_by_its_own_accuracy(accuracy):
    for asked in (accuracy, float(np.float32(accuracy))):
        assert choose([Candidate("only", accuracy, 0.0)], Wish(budget=1, min_accuracy=asked)).profile == "only"
