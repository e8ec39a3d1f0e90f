"""Callers for a few seconds, and what they met."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from damoserve_client.aio import AsyncClient
from damoserve_client.errors import DamoserveError
from damoserve_client.types import DetectOptions

SECONDS = 8.0
MOST_CALLERS = 16
BIN_SECONDS = 0.5
# A caller that was refused waits at least so long, or it would only ask and ask.
PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Call:
    """One call of the load; seconds since the load began, and seconds until its answer."""

    end: float
    latency: float
    # None: it failed.
    profile: str | None


@dataclass(frozen=True)
class Interval:
    """The calls that ended within one interval of the load; latencies in seconds, None without answers."""

    begin: float
    p50: float | None
    p95: float | None
    calls_by_profile: dict[str, int]
    failed: int


@dataclass
class Load:
    """Some callers that each send one picture again and again."""

    content: bytes
    options: DetectOptions
    callers: int
    seconds: float = SECONDS
    calls: list[Call] = field(default_factory=list)
    # How often each kind of error came.
    errors: Counter[str] = field(default_factory=Counter)
    last_error: DamoserveError | None = None

    async def run(self, client: AsyncClient) -> None:
        begin = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self.callers, MOST_CALLERS)):
                group.create_task(self._call_again_and_again(client, begin))

    async def _call_again_and_again(self, client: AsyncClient, begin: float) -> None:
        while (start := time.monotonic()) < begin + self.seconds:
            profile = None
            try:
                profile = (await client.detect(self.content, **self.options)).profile
            except DamoserveError as error:
                self.errors[type(error).__name__] += 1
                self.last_error = error
            end = time.monotonic()
            self.calls.append(Call(end - begin, end - start, profile))
            if profile is None:
                await asyncio.sleep(PAUSE_SECONDS)


def intervals(calls: Sequence[Call]) -> tuple[Interval, ...]:
    """The calls by when they ended, from the begin of the load to the last of them."""
    count = 1 + max((int(call.end / BIN_SECONDS) for call in calls), default=-1)
    bins: list[list[Call]] = [[] for _ in range(count)]
    for call in calls:
        bins[int(call.end / BIN_SECONDS)].append(call)
    return tuple(_interval(index * BIN_SECONDS, each) for index, each in enumerate(bins))


def _interval(begin: float, calls: Sequence[Call]) -> Interval:
    answered = sorted(call.latency for call in calls if call.profile)
    profiles = Counter(call.profile for call in calls if call.profile)
    failed = len(calls) - len(answered)
    return Interval(begin, percentile(answered, 0.5), percentile(answered, 0.95), dict(profiles), failed)


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of all do not exceed; None of nothing."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
