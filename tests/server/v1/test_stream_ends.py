"""Nothing of a stream is computed once it has ended, even if it is cancelled again while it ends."""

import asyncio
import time
from dataclasses import dataclass

import pytest

from damoserve_server.v1.stream import Streams
from damoserve_server.v1.window import Window


@dataclass(frozen=True)
class Frame:
    number: int
    deadline: float


class StreamHandler:
    """Sends frames and then nothing; they are computed until they are cancelled."""

    def __init__(self, frames: int, budget: float) -> None:
        self.begun: list[int] = []
        self.cancelled: list[int] = []
        self._frames = frames
        self._budget = budget

    async def frames(self, window: Window):
        window.drop_oldest = True
        for number in range(self._frames):
            yield Frame(number, time.monotonic() + self._budget), 0
        await asyncio.Event().wait()

    async def compute(self, frame):
        self.begun.append(frame.number)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(frame.number)
            raise

    async def send(self, slot):
        raise AssertionError("nothing has an answer")


async def settle():
    """Lets all go on that can."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("steps", range(6))
async def test_a_stream_that_is_cancelled_while_it_ends_computes_nothing_any_more(steps) -> None:
    """gRPC cancels the call of a client that is gone shortly after a write to it has failed."""
    caller = StreamHandler(frames=3, budget=60.0)
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
