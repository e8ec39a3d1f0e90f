"""How much a token may do."""

import asyncio
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeVar

from damoserve_server.errors import ConcurrencyLimited, RateLimited

Clock = Callable[[], float]
M = TypeVar("M")

INSTANT = 1e-6
"""Seconds that are no time at all: less than a caller can be told to wait."""


class Bucket:
    """A token bucket: lets `burst` calls through at once, and `rate` a second in the long run."""

    def __init__(self, rate: float, burst: int, clock: Clock = time.monotonic) -> None:
        self._interval = 1 / rate
        self._slack = (burst - 1) / rate
        self._clock = clock
        # The bucket is described by the time when it is full, not by a level, which would gather rounding errors.
        self._full_at = -math.inf

    def take(self) -> float:
        """0.0 if the call may go on; else the seconds to wait before the next try, and nothing is taken."""
        now = self._clock()
        wait = self._full_at - self._slack - now
        if wait > INSTANT:
            return wait
        self._full_at = max(self._full_at, now) + self._interval
        return 0.0


@dataclass(frozen=True)
class Limits:
    """None is no limit. `burst` needs a `rate`; unset it is what the rate brings in a second, and at least 1."""

    rate: float | None = None
    burst: int | None = None
    concurrency: int | None = None


class Allowance:
    """What the token of that name has left."""

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
        """The messages of one call. The first came with the call; the others count like calls, and wait their turn.

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
