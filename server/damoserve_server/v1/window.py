"""Decides which frames of a stream are computed, which are dropped, and which is answered next.

Every frame is answered once, in the order in which the frames came: with a result, with an error, or with the word that
it was dropped. The window bounds the work of a stream: at most `size` frames are started and not sent. What becomes of
one more is the client's choice, `on_overload` of the contract:

* It waits, outside of the server. `may_read` is false, so nothing more is read, and gRPC's flow control holds the
  client back. No frame is ever dropped.
* It takes the place of an older one (`drop_oldest`). Messages are read all the same, and one frame, the newest, waits
  in front of the window. When the next comes, that one waits instead and the older one is dropped. So it is never the
  newest frame that is dropped: a camera gets answers about now, not about a while ago.

A dropped frame is answered with who was behind. If at least half of the window was still being computed, it was the
server: more frames come than it can compute. Else most answers were ready and not fetched, and it was the client.

gRPC accepts megabytes of answers that the client's code has not read, so "sent" says little about the client. It may
therefore count, and tell with each frame how many answers its code has taken. Then, with `drop_oldest`, an answer that
was sent but not taken still fills its place in the window; that of a dropped frame fills none, as it cost nothing. A
client that does not count, or that has sent its last frame and can tell no more, is taken to have read what was sent.

A frame does not wait beyond its deadline: it is then started whatever the window (`start_overdue`), and the detector
answers at once that its time is over. A client that has paused would otherwise never hear of it.

For example, with two frames in the window, and numbers for frames and words for answers:

>>> window = Window[int, str](size=2)
>>> window.drop_oldest = True
>>> first, second = window.add(1) + window.add(2)  # both are to be computed
>>> window.add(3) + window.add(4)                  # the window is full: 3 waits, and is dropped for 4
[]
>>> window.finish(second, "a cat")
>>> window.next_to_send() is None                  # 2 has its answer, but 1 comes before it
True
>>> window.finish(first, "a dog")
>>> window.next_to_send().answer
'a dog'
>>> [slot.frame for slot in window.mark_sent()]    # there is a place now for the frame that waits
[4]
>>> window.next_to_send().answer, window.mark_sent()
('a cat', [])
>>> window.next_to_send().dropped                  # both frames were being computed when 3 was dropped
<Drop.SERVER: 'server'>

There is no event loop here, no clock and no lock: `stream` calls from one thread.
"""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

MAX_UNSENT = 1000
"""Dropped frames that may wait for their turn to be answered; beyond that nothing more is read."""

F = TypeVar("F")
A = TypeVar("A")


class Drop(StrEnum):
    """The side that was behind when a frame was dropped."""

    SERVER = "server"
    CLIENT = "client"


@dataclass(eq=False)
class Slot(Generic[F, A]):
    """One frame and what becomes of it: in the end it has an answer or was dropped."""

    frame: F
    answer: A | None = None
    dropped: Drop | None = None


class Window(Generic[F, A]):
    """The frames of one stream that are not answered yet, in their order.

    The slots that a method returns are to be computed from now on, and each is then given to `finish`.
    """

    def __init__(self, size: int) -> None:
        """`size` is in frames."""
        self.drop_oldest = False
        self.waiting: Slot[F, A] | None = None
        self._size = size
        self._slots: deque[Slot[F, A]] = deque()
        self._unsent = 0  # frames that were started and whose answers are not sent
        self._computing = 0
        self._sent = 0
        # The numbers of the answers that were sent and not taken, without those of dropped frames. None: not counted.
        self._not_taken: deque[int] | None = None

    @property
    def may_read(self) -> bool:
        """Whether the next frame may be read and added."""
        if self.drop_oldest:
            return len(self._slots) < self._size + MAX_UNSENT
        return self._unsent < self._size

    @property
    def empty(self) -> bool:
        """Whether every frame was answered."""
        return not self._slots

    def add(self, frame: F, answers_taken: int | None = None) -> list[Slot[F, A]]:
        """Adds the next frame; to be called only while `may_read`.

        `answers_taken` is how many answers the client's code has read by now, None if it does not count.
        """
        self._note_taken(answers_taken)
        started = self._start_waiting()
        if self.waiting is not None:
            self.waiting.dropped = Drop.SERVER if 2 * self._computing >= self._size else Drop.CLIENT
        self.waiting = Slot(frame)
        self._slots.append(self.waiting)
        return started + self._start_waiting()

    def finish(self, slot: Slot[F, A], answer: A) -> None:
        """Puts the answer of a frame that was computed into its slot."""
        slot.answer = answer
        self._computing -= 1

    def next_to_send(self) -> Slot[F, A] | None:
        """Returns the oldest frame if its answer can be sent, None if it is neither computed nor dropped yet."""
        settled = self._slots and (self._slots[0].answer is not None or self._slots[0].dropped is not None)
        return self._slots[0] if settled else None

    def mark_sent(self) -> list[Slot[F, A]]:
        """Removes the frame that `next_to_send` has returned: its answer is on its way."""
        slot = self._slots.popleft()
        self._sent += 1
        if slot.dropped is None:
            self._unsent -= 1
            if self._not_taken is not None:
                self._not_taken.append(self._sent)
        return self._start_waiting()

    def start_overdue(self) -> list[Slot[F, A]]:
        """Starts the frame that waits, whatever the window: its deadline has come."""
        return self._start_waiting(overdue=True)

    def end_input(self) -> list[Slot[F, A]]:
        """Takes note that no more frames come, and so no more counts of answers taken."""
        self._not_taken = None
        return self._start_waiting()

    def _note_taken(self, answers_taken: int | None) -> None:
        if answers_taken is None or not self.drop_oldest:
            self._not_taken = None
            return
        self._not_taken = deque(number for number in self._not_taken or () if number > answers_taken)

    def _start_waiting(self, overdue: bool = False) -> list[Slot[F, A]]:
        places_filled = self._unsent + len(self._not_taken or ())
        if self.waiting is None or (places_filled >= self._size and not overdue):
            return []
        slot, self.waiting = self.waiting, None
        self._unsent += 1
        self._computing += 1
        return [slot]
