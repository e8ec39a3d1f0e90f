"""Works on several messages of a stream at the same time, and answers them in the order in which they came."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")


async def in_order(
    source: AsyncIterable[S], work: Callable[[S], Coroutine[Any, Any, T]], depth: int
) -> AsyncGenerator[T, None]:
    """Yields the result of each item, in the order of `source`. At most `depth` items are in work or not yet fetched.

    However it ends, no work goes on.
    """
    permits = asyncio.Semaphore(depth)
    tasks: asyncio.Queue[asyncio.Task[T] | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for item in source:
                await permits.acquire()
                tasks.put_nowait(asyncio.create_task(work(item)))
        finally:
            tasks.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (task := await tasks.get()) is not None:
            yield await task
            permits.release()
        await reader  # for its failure, if it has failed
    finally:
        await _cancel_all(reader, *(task for task in _take_all(tasks) if task is not None))


def _take_all(queue: asyncio.Queue[T]) -> list[T]:
    return [queue.get_nowait() for _ in range(queue.qsize())]


async def _cancel_all(*tasks: asyncio.Task[Any]) -> None:
    """Cancels all tasks before it waits for any: the wait itself may be cancelled."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
