"""Limits of a token: calls in the long run, calls at once, calls open at the same time."""

import asyncio
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeVar

from damoserve_server.errors import ConcurrencyLimited, RateLimited

Clock = Callable[[], float]
M = TypeVar("M")

NEGLIGIBLE_SECONDS = 1e-6
"""A wait that counts as none: it is less than a caller can be told to wait."""


class Bucket:
    """A token bucket: lets `burst` calls through at once, and `rate` a second in the long run."""

    def __init__(self, rate: float, burst: int, clock: Clock = time.monotonic) -> None:
        self._interval = 1 / rate
        self._slack = (burst - 1) / rate
        self._clock = clock
        # The bucket is described by the time when it is full, not by a level, which would gather rounding errors.
        self._full_at = -math.inf

    def take(self) -> float:
        """Takes one token if there is one, and returns 0.0; else returns the seconds until there is one."""
        now = self._clock()
        wait = self._full_at - self._slack - now
        if wait > NEGLIGIBLE_SECONDS:
            return wait
        self._full_at = max(self._full_at, now) + self._interval
        return 0.0


@dataclass(frozen=True)
class Limits:
    """The limits of a token; None is no limit."""

    rate: float | None = None
    """Calls a second in the long run."""
    burst: int | None = None
    """Calls at once. Needs a rate; unset it is what the rate brings in a second, and at least 1."""
    concurrency: int | None = None
    """Calls that are open at the same time."""


class Allowance:
    """Keeps one token to its limits; `token` is its name."""

    def __init__(self, token: str, limits: Limits, clock: Clock = time.monotonic) -> None:
        self.limits = limits
        self._token = token
        self._bucket = Bucket(limits.rate, limits.burst or math.ceil(limits.rate), clock) if limits.rate else None
        self._open = 0

    def enter(self) -> None:
        """Begins a call, which must `leave`. Raises ConcurrencyLimited or RateLimited."""
        if self.limits.concurrency is not None and self._open >= self.limits.concurrency:
            raise ConcurrencyLimited(self._token, self.limits.concurrency)
        wait = self._take()
        if wait:
            raise RateLimited(self._token, wait)
        self._open += 1

    def leave(self) -> None:
        self._open -= 1

    async def paced(self, messages: AsyncIterable[M]) -> AsyncIterator[M]:
        """Yields the messages of one call. The first came with the call; the others count like calls and wait for it.

        A stream that is too quick is thus slowed by gRPC's flow control, and not ended.
        """
        first = True
        async for message in messages:
            while not first and (wait := self._take()):
                await asyncio.sleep(wait)
            first = False
            yield message

    def _take(self) -> float:
        return self._bucket.take() if self._bucket else 0.0
