"""Waiting for work that cannot be interrupted."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def settled(future: asyncio.Future[T], withdraw: Callable[[], bool]) -> T:
    """The result of work that a thread does in borrowed memory.

    A cancelled caller may leave at once only if the work can still be withdrawn. Otherwise it leaves when the work has
    ended: the memory would be lent to someone else while the thread still uses it.
    """
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if not withdraw():
            while not future.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # nobody is left to hear of it; looked at, asyncio does not log it
        raise
