"""Which frames of a stream are computed, and in which order they are answered. No event loop, no clock."""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

MAX_UNSENT = 1000
"""Frames that are neither sent nor computed, dropped ones that is, after which nothing more is read."""

F = TypeVar("F")
A = TypeVar("A")


class Drop(StrEnum):
    """Who is behind."""

    SERVER = "server"
    CLIENT = "client"


@dataclass(eq=False)
class Slot(Generic[F, A]):
    """One frame; in the end it has an answer or was dropped."""

    frame: F
    answer: A | None = None
    dropped: Drop | None = None


class Window(Generic[F, A]):
    """At most `size` frames are being computed or have an answer that the client has not taken.

    With `drop_oldest` one more may wait, the newest; it is dropped when a newer one comes. Otherwise none waits: `add`
    may be called only while the window is `open`. What a method returns is to be computed now, and to be given to
    `finish` then.
    """

    def __init__(self, size: int) -> None:
        self.drop_oldest = False
        self.waiting: Slot[F, A] | None = None
        self._size = size
        self._slots: deque[Slot[F, A]] = deque()
        self._started = 0  # and not sent
        self._computing = 0
        self._sent = 0
        self._untaken: deque[int] | None = None  # numbers of the answers sent, of frames not dropped; None: not told

    @property
    def open(self) -> bool:
        """Whether the next frame may be read."""
        if self.drop_oldest:
            return len(self._slots) < self._size + MAX_UNSENT
        return self._started < self._size

    @property
    def empty(self) -> bool:
        """Whether every frame was answered."""
        return not self._slots

    def add(self, frame: F, taken: int | None = None) -> list[Slot[F, A]]:
        """`taken` answers have reached the client's code; None if it does not tell."""
        self._hear(taken)
        due = self._start()
        if self.waiting is not None:
            self.waiting.dropped = Drop.SERVER if 2 * self._computing >= self._size else Drop.CLIENT
        self.waiting = Slot(frame)
        self._slots.append(self.waiting)
        return due + self._start()

    def finish(self, slot: Slot[F, A], answer: A) -> None:
        """The frame was computed."""
        slot.answer = answer
        self._computing -= 1

    def first(self) -> Slot[F, A] | None:
        """The frame whose answer is to be sent next; None while that is not settled."""
        settled = self._slots and (self._slots[0].answer is not None or self._slots[0].dropped is not None)
        return self._slots[0] if settled else None

    def sent(self) -> list[Slot[F, A]]:
        """The answer to `first` is on its way."""
        slot = self._slots.popleft()
        self._sent += 1
        if slot.dropped is None:
            self._started -= 1
            if self._untaken is not None:
                self._untaken.append(self._sent)
        return self._start()

    def force(self) -> list[Slot[F, A]]:
        """The frame that waits can do so no longer."""
        return self._start(at_once=True)

    def close(self) -> list[Slot[F, A]]:
        """No more frames come, and so no more word of answers taken."""
        self._untaken = None
        return self._start()

    def _hear(self, taken: int | None) -> None:
        if taken is None or not self.drop_oldest:
            self._untaken = None
            return
        self._untaken = deque(number for number in self._untaken or () if number > taken)

    def _start(self, at_once: bool = False) -> list[Slot[F, A]]:
        held = self._started + len(self._untaken or ())
        if self.waiting is None or (held >= self._size and not at_once):
            return []
        slot, self.waiting = self.waiting, None
        self._started += 1
        self._computing += 1
        return [slot]
