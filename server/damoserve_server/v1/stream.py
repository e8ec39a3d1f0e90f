"""Runs one detection stream on the event loop: reads its frames, has them computed, sends the answers in order, ends.

Which frame is computed or dropped is decided by the `Window`; what the messages mean is known to the handler. Here are
the tasks of a stream:

* The reader adds frames to the window. While that is full it reads nothing, so that gRPC holds the client back.
* Each frame that the window starts is computed in a task of its own.
* The sender is the task that has called `run`. It alone writes to the call, and waits until the frame whose turn it is
  has an answer.

They run on one event loop, so the window needs no lock. Two events wake them: `_changed` the sender, when a frame has
come or was computed or the reader has ended; `_sent` the reader, when there may be a place in the window. Besides, a
timer starts the frame that waits when its deadline comes.

A stream ends in one of these ways:

* The client has sent its last frame: all frames are answered, then `run` returns.
* The server stops: the reader is cancelled, the frames that were read are answered, then `run` raises ShuttingDown.
* A message is wrong: the frames before it are answered, then `run` raises what the reader has raised.
* Nothing moves: no message comes though all frames are answered, or an answer is not accepted. `run` raises StreamIdle.
* The client is gone, or the deadline of the call has passed: gRPC cancels the sender, wherever it waits.

However it ends, nothing of it is computed any longer. `_ended` is set first, as the end of the reader would start the
frame that waits, whose answer nobody would send; then all tasks are cancelled, and only then waited for. That order
matters: gRPC may cancel a call twice, and the second time interrupts the wait, but then nothing is left running.

For example, a handler that sends three numbers and has the squares of them computed, that of 2 before that of 1:

>>> class Squares:
...     def __init__(self):
...         self.two_is_done = asyncio.Event()
...     async def frames(self, window):
...         for number in (1, 2, 3):
...             yield Number(number), None
...     async def compute(self, frame):
...         await self.two_is_done.wait() if frame.value == 1 else self.two_is_done.set()
...         print("computed", frame.value)
...         return frame.value ** 2
...     async def send(self, slot):
...         print("sent", slot.answer)
>>> @dataclass
... class Number:
...     value: int
...     deadline: float = inf
>>> asyncio.run(Streams(limit=1, window=2, idle_timeout=60.0).run(Squares()))
computed 2
computed 1
sent 1
sent 4
computed 3
sent 9

The third is read when the answer to the first was sent, as the window is of two frames.
"""

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
    """The source of a stream's frames, what computes them, and where their answers go."""

    def frames(self, window: Window[F, A]) -> AsyncIterator[tuple[F, int | None]]:
        """Yields the frames, each with how many answers the client has taken. Raises what ends the stream."""
        ...

    async def compute(self, frame: F) -> A:
        """Returns the answer to a frame. An error of the frame is an answer too, and is not raised."""
        ...

    async def send(self, slot: Slot[F, A]) -> None: ...


class Stream(Generic[F, A]):
    """One open stream. Its reader begins at once, the rest with `run`."""

    def __init__(self, handler: StreamHandler[F, A], window: Window[F, A], idle_timeout: float) -> None:
        """`idle_timeout` is in seconds."""
        self._handler = handler
        self._window = window
        self._idle_timeout = idle_timeout
        self._changed = asyncio.Event()
        self._sent = asyncio.Event()
        self._computing: set[asyncio.Task[None]] = set()
        self._ended = False
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._reader = asyncio.create_task(self._read())
        self._reader.add_done_callback(lambda _: self._changed.set())

    async def run(self) -> None:
        """Sends the answers; returns when all frames are answered and no more come.

        Raises StreamIdle, ShuttingDown, or what `frames` raised. However it ends, nothing is computed any more.
        """
        try:
            while (slot := await self._next_answered()) is not None:
                async with self._within_idle_timeout("no answer was taken"):
                    await self._handler.send(slot)
                self._start_computing(self._window.mark_sent())
                self._sent.set()
            if self._reader.cancelled():
                raise ShuttingDown
            self._reader.result()
        finally:
            self._ended = True  # the end of the reader would start the frame that waits
            self._set_deadline_timer(None)
            await _cancel_all(self._reader, *self._computing)

    def stop_reading(self) -> None:
        """Lets no more frames in; those that were read are answered."""
        self._reader.cancel()

    async def _read(self) -> None:
        try:
            async for frame, answers_taken in self._handler.frames(self._window):
                self._start_computing(self._window.add(frame, answers_taken))
                self._set_deadline_timer(self._window.waiting)
                self._changed.set()
                while not self._window.may_read:
                    self._sent.clear()
                    await self._sent.wait()
        finally:
            self._start_computing(self._window.end_input())

    def _set_deadline_timer(self, waiting: Slot[F, A] | None) -> None:
        """Starts the frame that waits at its deadline, so that it is answered then; None stops the timer."""
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        loop = asyncio.get_running_loop()
        self._deadline_timer = None if waiting is None else loop.call_at(waiting.frame.deadline, self._start_overdue)

    def _start_overdue(self) -> None:
        self._start_computing(self._window.start_overdue())

    def _start_computing(self, slots: list[Slot[F, A]]) -> None:
        for slot in () if self._ended else slots:
            task = asyncio.create_task(self._compute(slot))
            self._computing.add(task)
            task.add_done_callback(self._computing.discard)

    async def _compute(self, slot: Slot[F, A]) -> None:
        self._window.finish(slot, await self._handler.compute(slot.frame))
        self._changed.set()

    async def _next_answered(self) -> Slot[F, A] | None:
        """Waits for the next frame that can be answered; None after the last."""
        while (slot := self._window.next_to_send()) is None:
            if self._window.empty and self._reader.done():
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
        """`limit` is in streams, `window` in frames of one stream, `idle_timeout` in seconds."""
        self._limit = limit
        self._window = window
        self._idle_timeout = idle_timeout
        self._open: set[Stream[Any, Any]] = set()
        self._closed = False

    async def run(self, handler: StreamHandler[F, A]) -> None:
        """Runs one stream until it ends. Raises TooManyStreams at once, and what `Stream.run` raises."""
        with self._opened(handler) as stream:
            await stream.run()

    def close(self) -> None:
        """Takes no more streams, and no more frames of those that are open."""
        self._closed = True
        for stream in self._open:
            stream.stop_reading()

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


async def _cancel_all(*tasks: asyncio.Task[None]) -> None:
    """Cancels all tasks before it waits for any: the wait itself may be cancelled."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
