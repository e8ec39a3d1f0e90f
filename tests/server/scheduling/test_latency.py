import pytest

from damoserve_server.scheduling.latency import (
    MAX_AGE_SECONDS,
    MEMORY_SECONDS,
    WINDOW,
    Arrivals,
    DecodeEstimate,
    LatencyEstimate,
)
from tests.support.clock import Clock


def test_an_outlier_does_not_move_the_estimate() -> None:
    estimate = LatencyEstimate({1: 1.0}, Clock())
    for seconds in (2.0, 2.0, 100.0):
        estimate.observe(seconds)
    assert estimate.expected() == 2.0


def test_it_follows_a_lasting_change() -> None:
    estimate = LatencyEstimate({1: 1.0}, Clock())
    for seconds in [2.0] * WINDOW + [3.0] * WINDOW:
        estimate.observe(seconds)
    assert estimate.expected() == 3.0


def test_it_returns_to_the_baseline_when_nothing_is_measured() -> None:
    clock = Clock()
    estimate = LatencyEstimate({1: 1.0}, clock)
    estimate.observe(50.0)
    clock.now = MAX_AGE_SECONDS
    assert estimate.expected() == 50.0
    clock.now += 0.1
    assert estimate.expected() == 1.0


def test_what_is_old_is_forgotten_and_what_is_new_is_not() -> None:
    clock = Clock()
    estimate = LatencyEstimate({1: 9.0}, clock)
    estimate.observe(1.0)
    clock.now = 1.0
    estimate.observe(3.0)
    assert estimate.expected() == 1.0
    clock.now = MAX_AGE_SECONDS + 0.5
    assert estimate.expected() == 3.0
    clock.now += 1.0
    assert estimate.expected() == 9.0


def test_batches_are_learned_by_their_size() -> None:
    estimate = LatencyEstimate({1: 1.0, 2: 2.0, 3: 2.2, 4: 2.5}, Clock())
    estimate.observe(1.0)
    estimate.observe(3.0, batch_size=4)
    estimate.observe(5.0, batch_size=4)
    assert (estimate.expected(4), estimate.expected(1)) == (3.0, 1.0)


def test_before_the_first_measurement_the_baselines_count() -> None:
    estimate = LatencyEstimate({1: 1.0, 2: 2.5}, Clock())
    assert [estimate.expected(size) for size in (1, 2)] == [1.0, 2.5]


def test_decisions_are_made_by_a_cautious_estimate() -> None:
    estimate = LatencyEstimate({1: 1.0, 2: 2.0}, Clock())
    for _ in range(7):
        estimate.observe(1.0)
    for _ in range(3):
        estimate.observe(3.0)
    cost = estimate.cost(accuracy=0.6)
    assert (estimate.expected(), cost.accuracy, cost.seconds) == (1.0, 0.6, (3.0, 6.0))


def test_an_old_estimate_is_not_decided_by() -> None:
    clock = Clock()
    estimate = LatencyEstimate({1: 1.0}, clock)
    estimate.observe(50.0)
    assert estimate.cost(0.6).seconds == (50.0,)
    clock.now = MAX_AGE_SECONDS + 0.1
    assert estimate.cost(0.6).seconds == (1.0,)


def test_what_is_decided_by_changes_with_every_measurement() -> None:
    estimate = LatencyEstimate({1: 1.0}, Clock())
    assert estimate.cost(0.6).seconds == (1.0,)
    estimate.observe(2.0)
    assert estimate.cost(0.6).seconds == (2.0,)


def test_without_a_measurement_it_is_looked_at_anew_after_a_second() -> None:
    """So an old measurement decides for up to a second longer."""
    clock = Clock()
    estimate = LatencyEstimate({1: 1.0}, clock)
    estimate.observe(50.0)
    clock.now = MAX_AGE_SECONDS - 0.5
    known = estimate.cost(0.6)
    assert known.seconds == (50.0,)
    for later in (MAX_AGE_SECONDS + 0.25, MAX_AGE_SECONDS + 0.5):
        clock.now = later
        assert estimate.cost(0.6) is known
    clock.now = MAX_AGE_SECONDS + 0.75
    assert estimate.cost(0.6).seconds == (1.0,)


def test_a_slow_batch_tells_of_all_sizes() -> None:
    estimate = LatencyEstimate({1: 20.0, 2: 30.0, 3: 40.0}, Clock())
    estimate.observe(400.0, batch_size=3)
    assert [estimate.expected(size) for size in (1, 2, 3)] == [200.0, 300.0, 400.0]


def test_decoding_a_large_image_tells_nothing_of_small_ones() -> None:
    estimate = DecodeEstimate(Clock())
    for _ in range(40):
        estimate.observe(0.5, 9_000_000)
    assert estimate.expected(10_000_000) == 0.5
    assert estimate.expected(20_000) == 0
    estimate.observe(0.001, 20_000)
    assert (estimate.expected(10_000_000), estimate.expected(20_000)) == (0.5, 0.001)


def test_an_image_that_was_slow_to_decode_does_not_move_the_estimate() -> None:
    estimate = DecodeEstimate(Clock())
    for seconds in (0.01, 0.01, 5.0):
        estimate.observe(seconds, 1000)
    assert estimate.expected(1000) == 0.01


def test_decoding_is_forgotten_too() -> None:
    clock = Clock()
    estimate = DecodeEstimate(clock)
    estimate.observe(50.0, 1000)
    clock.now = MAX_AGE_SECONDS + 0.1
    assert estimate.expected(1000) == 0


def test_arrivals_are_counted_and_forgotten() -> None:
    arrivals = Arrivals()
    assert arrivals.recent(0.0) == (0.0, 0.0)
    arrivals.add(1.0, budget=0.3)
    assert arrivals.recent(1.0) == pytest.approx((0.0, 0.3)), "one makes no rate"
    arrivals.add(1.0, budget=0.3)
    arrivals.add(1.0, budget=0.0)
    assert arrivals.recent(1.0) == pytest.approx((2 / MEMORY_SECONDS, 0.2))
    rate, budget = arrivals.recent(1.0 + 5 * MEMORY_SECONDS)
    assert 0 < rate < 0.01 * 2 / MEMORY_SECONDS
    assert budget == pytest.approx(0.2)


def test_a_steady_rate_is_found() -> None:
    arrivals = Arrivals()
    for number in range(1000):
        arrivals.add(number / 100, budget=1.0)
    assert arrivals.recent(9.99)[0] == pytest.approx(100, rel=0.05)
