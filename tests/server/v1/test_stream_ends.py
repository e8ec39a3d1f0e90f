"""Frames that wait, by their deadlines; and nothing of a stream is computed once it has ended."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from damoserve_server.v1.stream import Streams
from damoserve_server.v1.window import Slot, Window


@dataclass(frozen=True)
class Frame:
    number: int
    deadline: float


class StreamHandler:
    """Sends frames and then nothing; they are computed until they are cancelled."""

    def __init__(self, budgets: Sequence[float]) -> None:
        self.begun: list[int] = []
        self.cancelled: list[int] = []
        self.deadlines = [time.monotonic() + budget for budget in budgets]

    async def frames(self, window: Window[Frame, None]) -> AsyncIterator[tuple[Frame, int]]:
        window.drop_oldest = True
        for number, deadline in enumerate(self.deadlines):
            yield Frame(number, deadline), 0
        await asyncio.Event().wait()

    async def compute(self, frame: Frame) -> None:
        self.begun.append(frame.number)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(frame.number)
            raise

    async def send(self, slot: Slot[Frame, None]) -> None:
        raise AssertionError("nothing has an answer")


async def settle() -> None:
    """Lets all go on that can."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("steps", range(6))
async def test_a_stream_that_is_cancelled_while_it_ends_computes_nothing_any_more(steps: int) -> None:
    """gRPC cancels the call of a client that is gone shortly after a write to it has failed."""
    caller = StreamHandler([60.0] * 3)
    run = asyncio.ensure_future(Streams(limit=1, window=2, idle_timeout=60.0).run(caller))
    await settle()
    assert caller.begun == [0, 1]
    run.cancel()
    for _ in range(steps):
        await asyncio.sleep(0)
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    await settle()
    result = caller.begun, sorted(caller.cancelled)
    assert result == ([0, 1], [0, 1])


@pytest.mark.parametrize(("budgets", "begun"), [((60.0, 0.01, 60.0), [0]), ((60.0, 60.0, 0.01), [0, 2])])
async def test_only_the_frame_that_waits_is_begun_at_its_deadline_not_one_that_was_dropped(
    budgets: tuple[float, ...], begun: list[int]
) -> None:
    caller = StreamHandler(budgets)
    run = asyncio.ensure_future(Streams(limit=1, window=1, idle_timeout=60.0).run(caller))
    await settle()
    over = asyncio.Event()
    # The loop calls in the order of time: what was to happen by the deadlines has happened by then.
    asyncio.get_running_loop().call_at(min(caller.deadlines) + 1e-3, over.set)
    await over.wait()
    await settle()
    seen = list(caller.begun)
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    assert seen == begun
