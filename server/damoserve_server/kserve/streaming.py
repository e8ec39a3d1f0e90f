"""Work on what a stream brings, answered in its order."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")


async def in_order(
    source: AsyncIterable[S], work: Callable[[S], Coroutine[Any, Any, T]], depth: int
) -> AsyncGenerator[T, None]:
    """The results in the order of the source. At most `depth` are worked on or wait to be taken.

    However it ends, no work goes on.
    """
    places = asyncio.Semaphore(depth)
    begun: asyncio.Queue[asyncio.Task[T] | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for item in source:
                await places.acquire()
                begun.put_nowait(asyncio.create_task(work(item)))
        finally:
            begun.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (task := await begun.get()) is not None:
            yield await task
            places.release()
        await reader  # for its failure, if it has failed
    finally:
        await _end(reader, *(task for task in _rest(begun) if task is not None))


def _rest(queue: asyncio.Queue[T]) -> list[T]:
    return [queue.get_nowait() for _ in range(queue.qsize())]


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """All are cancelled at once, whatever becomes of the wait: who ends this may be cancelled meanwhile."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
