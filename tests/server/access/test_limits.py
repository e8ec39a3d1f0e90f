"""The token bucket for arbitrary callers, with a clock of its own."""

import time
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from damoserve_server.access.limits import Allowance, Bucket, Limits
from damoserve_server.errors import ConcurrencyLimited, RateLimited
from tests.support.clock import Clock

rates = st.floats(0.01, 1000)
bursts = st.integers(1, 20)
pauses = st.lists(st.one_of(st.just(0.0), st.floats(0, 5)), min_size=1, max_size=60)
"""Between calls, in intervals of the rate."""
LONG_UP = 1e6  # such times have less precision than small ones, as those of a machine that is long up


@given(rates, bursts, pauses)
def test_a_call_passes_if_and_only_if_every_window_keeps_its_bound(
    rate: float, burst: int, pauses: list[float]
) -> None:
    """In any time T there are at most burst + rate * T calls, and none is refused that would keep this so."""
    clock = Clock(LONG_UP)
    bucket = Bucket(rate, burst, clock)
    passed: list[float] = []
    for pause in pauses:
        clock.now += pause / rate
        times = [*passed, clock.now]
        excess = max(len(times) - i - burst - rate * (clock.now - times[i]) for i in range(len(times)))
        if bucket.take():
            assert excess > -1e-3
        else:
            assert excess < 1e-3
            passed.append(clock.now)


@given(rates, bursts, pauses)
def test_the_time_to_wait_is_enough_and_not_too_much(rate: float, burst: int, pauses: list[float]) -> None:
    clock = Clock(LONG_UP)
    bucket = Bucket(rate, burst, clock)
    for pause in pauses:
        clock.now += pause / rate
        if wait := bucket.take():
            assert wait <= 1.001 / rate
            clock.now += wait / 2
            assert bucket.take()
            rest = bucket.take()
            assert rest is not None
            clock.now += rest
            assert not bucket.take()


@given(rates, bursts)
def test_after_a_quiet_time_a_whole_burst_passes_and_no_more(rate: float, burst: int) -> None:
    clock = Clock(LONG_UP)
    bucket = Bucket(rate, burst, clock)
    for _ in range(3):
        assert not any(bucket.take() for _ in range(burst))
        assert bucket.take()
        clock.now += burst / rate + 1e-6


def test_a_call_that_is_refused_uses_nothing_up() -> None:
    clock = Clock(LONG_UP)
    allowance = Allowance("camera", Limits(rate=1, burst=2, concurrency=1), clock)
    allowance.enter()
    for _ in range(5):
        with pytest.raises(ConcurrencyLimited):
            allowance.enter()
    allowance.leave()
    allowance.enter()
    allowance.leave()
    for _ in range(5):
        with pytest.raises(RateLimited) as refused:
            allowance.enter()
    assert refused.value.retry_after is not None
    clock.now += refused.value.retry_after
    allowance.enter()


def test_without_limits_everything_passes() -> None:
    allowance = Allowance("camera", Limits())
    for _ in range(1000):
        allowance.enter()


def test_the_burst_is_what_the_rate_brings_in_a_second_unless_it_is_set() -> None:
    for rate, burst in {0.5: 1, 2.5: 3}.items():
        allowance = Allowance("camera", Limits(rate=rate), Clock(LONG_UP))
        for _ in range(burst):
            allowance.enter()
        with pytest.raises(RateLimited):
            allowance.enter()


async def test_a_stream_above_its_rate_is_slowed_and_keeps_its_messages() -> None:
    async def messages() -> AsyncIterator[int]:
        for number in range(6):
            yield number

    allowance = Allowance("camera", Limits(rate=200, burst=1))
    allowance.enter()
    started = time.monotonic()
    received, seconds = [message async for message in allowance.paced(messages())], time.monotonic() - started
    assert received == list(range(6))
    assert seconds >= 0.99 * 5 / 200
