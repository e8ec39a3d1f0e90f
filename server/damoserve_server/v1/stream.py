"""A stream of frames: reads them, has them computed, and sends the answers in their order."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, Protocol, TypeVar

from damoserve_server.errors import ShuttingDown, StreamIdle, TooManyStreams
from damoserve_server.v1.window import Slot, Window


class Deadlined(Protocol):
    """A frame; `deadline` is on the clock of the event loop, the monotonic one."""

    @property
    def deadline(self) -> float: ...


F = TypeVar("F", bound=Deadlined)
A = TypeVar("A")


class StreamHandler(Protocol[F, A]):
    """What a stream is between."""

    def frames(self, window: Window[F, A]) -> AsyncIterator[tuple[F, int | None]]:
        """The frames, each with how many answers the caller has taken. Raises what ends the stream."""
        ...

    async def compute(self, frame: F) -> A:
        """The answer, be it an error."""
        ...

    async def send(self, slot: Slot[F, A]) -> None: ...


class Stream(Generic[F, A]):
    """One stream."""

    def __init__(self, handler: StreamHandler[F, A], window: Window[F, A], idle_timeout: float) -> None:
        self._handler = handler
        self._window = window
        self._idle_timeout = idle_timeout
        self._changed = asyncio.Event()
        self._sent = asyncio.Event()
        self._computing: set[asyncio.Task[None]] = set()
        self._over = False
        self._alarm: asyncio.TimerHandle | None = None
        self._reading = asyncio.create_task(self._read())
        self._reading.add_done_callback(lambda _: self._changed.set())

    async def run(self) -> None:
        """Returns when all frames are answered and no more come.

        Raises StreamIdle, ShuttingDown, or what `frames` raised. However it ends, nothing is computed any more.
        """
        try:
            while (slot := await self._next()) is not None:
                async with self._within_idle_timeout("no answer was taken"):
                    await self._handler.send(slot)
                self._start(self._window.sent())
                self._sent.set()
            if self._reading.cancelled():
                raise ShuttingDown
            self._reading.result()
        finally:
            self._over = True  # the end of reading would start the frame that waits
            self._watch(None)
            await _end(self._reading, *self._computing)

    def stop(self) -> None:
        """Reads no more; the frames that were read are answered."""
        self._reading.cancel()

    async def _read(self) -> None:
        try:
            async for frame, taken in self._handler.frames(self._window):
                self._start(self._window.add(frame, taken))
                self._watch(self._window.waiting)
                self._changed.set()
                while not self._window.open:
                    self._sent.clear()
                    await self._sent.wait()
        finally:
            self._start(self._window.close())

    def _watch(self, slot: Slot[F, A] | None) -> None:
        """A frame that waits until its time is over is answered then."""
        if self._alarm is not None:
            self._alarm.cancel()
        loop = asyncio.get_running_loop()
        self._alarm = None if slot is None else loop.call_at(slot.frame.deadline, self._expire)

    def _expire(self) -> None:
        self._start(self._window.force())

    def _start(self, slots: list[Slot[F, A]]) -> None:
        for slot in () if self._over else slots:
            task = asyncio.create_task(self._compute(slot))
            self._computing.add(task)
            task.add_done_callback(self._computing.discard)

    async def _compute(self, slot: Slot[F, A]) -> None:
        self._window.finish(slot, await self._handler.compute(slot.frame))
        self._changed.set()

    async def _next(self) -> Slot[F, A] | None:
        """The next frame that can be answered; None after the last."""
        while (slot := self._window.first()) is None:
            if self._window.empty and self._reading.done():
                return None
            self._changed.clear()
            if self._window.empty:
                async with self._within_idle_timeout("no message came"):
                    await self._changed.wait()
            else:
                await self._changed.wait()
        return slot

    @asynccontextmanager
    async def _within_idle_timeout(self, complaint: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._idle_timeout):
                yield
        except TimeoutError:
            raise StreamIdle(f"{complaint} for {self._idle_timeout:g} s") from None


class Streams:
    """The open streams of a server."""

    def __init__(self, limit: int, window: int, idle_timeout: float) -> None:
        """`window` is in frames; `patience`, in seconds, is how long a stream may be idle."""
        self._limit = limit
        self._window = window
        self._idle_timeout = idle_timeout
        self._open: set[Stream[Any, Any]] = set()
        self._closed = False

    async def run(self, handler: StreamHandler[F, A]) -> None:
        """Raises TooManyStreams at once, and what `Stream.run` raises."""
        with self._opened(handler) as stream:
            await stream.run()

    def close(self) -> None:
        """Takes no more streams, and no more frames of those that are open."""
        self._closed = True
        for stream in self._open:
            stream.stop()

    @contextmanager
    def _opened(self, handler: StreamHandler[F, A]) -> Iterator[Stream[F, A]]:
        if self._closed:
            raise ShuttingDown
        if len(self._open) >= self._limit:
            raise TooManyStreams(self._limit)
        stream = Stream(handler, Window(self._window), self._idle_timeout)
        self._open.add(stream)
        try:
            yield stream
        finally:
            self._open.remove(stream)


async def _end(*tasks: asyncio.Task[None]) -> None:
    """All are cancelled at once, whatever becomes of the wait: who ends a stream may be cancelled meanwhile."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
