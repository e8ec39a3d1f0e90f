"""What a batch costs, and where a request stands in the queue."""

import pytest

from damoserve_server.scheduling.policy import Cost, Requirements, urgency


@pytest.mark.parametrize(
    ("seconds", "sizes", "share"),
    [
        ((2.0,), (1,), 2.0),
        ((2.0, 3.8), (1, 2), 1.9),  # 0.95 of the time for each: just worthwhile
        ((2.0, 3.9), (1,), 2.0),
        ((2.0, 2.5, 4.5), (1, 2), 1.25),  # the third would make every image slower
        ((2.0, 4.0, 3.0), (1, 3), 1.0),
    ],
)
def test_what_a_batch_costs(seconds: tuple[float, ...], sizes: tuple[int, ...], share: float) -> None:
    cost = Cost(0.5, seconds)
    assert cost.sizes == sizes
    assert cost.seconds_per_image == share
    assert cost.batches == tuple((seconds[size - 1] / size, size, seconds[size - 1]) for size in sizes)
    assert [cost.expected(size) for size in range(1, len(seconds) + 1)] == list(seconds)


@pytest.mark.parametrize(
    ("priority", "place"),
    [(1, 101.0), (2, 102.0), (5, 105.0)],
)
def test_a_priority_of_n_claims_n_sixths_of_the_time(priority: int, place: float) -> None:
    requirements = Requirements(("any",), deadline=200.0, due=106.0, arrival=100.0, priority=priority)
    assert urgency(requirements, now=101.0, quickest=1.0) == pytest.approx(place)


def test_the_least_urgent_is_the_default() -> None:
    assert Requirements(("any",), deadline=200.0, due=106.0, arrival=100.0).priority == 5


@pytest.mark.parametrize(("now", "place"), [(105.0, 105.0), (105.5, 110.0)])
def test_who_can_no_longer_be_in_time_stands_by_the_deadline(now: float, place: float) -> None:
    """Ending at the very moment when it is due is in time."""
    requirements = Requirements(("any",), deadline=112.0, due=106.0, arrival=100.0)
    assert urgency(requirements, now, quickest=1.0) == pytest.approx(place)
