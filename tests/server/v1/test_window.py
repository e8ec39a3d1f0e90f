"""Which frames are computed, dropped and answered, for any order of events."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from damoserve_server.v1 import window as module
from damoserve_server.v1.window import Drop, Slot, Window

Events = st.lists(st.sampled_from(["add", "finish", "send", "take", "force"]), max_size=120)


class Play:
    """A stream by hand: frames are numbers, an answer is the frame's number."""

    def __init__(self, size: int, drop_oldest: bool, tells: bool) -> None:
        self.window: Window[int, int] = Window(size)
        self.window.drop_oldest = drop_oldest
        self.size, self.tells = size, tells
        self.added = self.taken = 0
        self.computing: list[Slot[int, int]] = []
        self.sent: list[Slot[int, int]] = []
        self.forced = 0

    def do(self, event: str, choice: int) -> None:
        getattr(self, event)(choice)

    def add(self, _: int = 0) -> None:
        if self.window.may_read:
            self._compute(self.window.add(self.added, self.taken if self.tells else None))
            self.added += 1

    def finish(self, choice: int) -> None:
        if self.computing:
            slot = self.computing.pop(choice % len(self.computing))
            self.window.finish(slot, slot.frame)

    def send(self, _: int = 0) -> None:
        if (slot := self.window.next_to_send()) is not None:
            self.sent.append(slot)
            self._compute(self.window.mark_sent())

    def take(self, _: int = 0) -> None:
        self.taken = min(self.taken + 1, len(self.sent))

    def force(self, _: int = 0) -> None:
        due = self.window.start_overdue()
        self.forced += len(due)
        self._compute(due)

    def end(self) -> None:
        self._compute(self.window.end_input())
        while not self.window.empty:
            self.finish(0)
            self.send()

    def _compute(self, due: Iterable[Slot[int, int]]) -> None:
        self.computing += due

    def untaken(self) -> int:
        return sum(slot.dropped is None for slot in self.sent[self.taken :])


@given(Events, st.lists(st.integers(0, 7), min_size=120, max_size=120), st.integers(1, 4), st.booleans(), st.booleans())
def test_every_frame_is_answered_once_and_in_order(
    events: list[str], choices: list[int], size: int, drop_oldest: bool, tells: bool
) -> None:
    play = Play(size, drop_oldest, tells)
    for event, choice in zip(events, choices, strict=False):
        play.do(event, choice)
        assert len(play.computing) <= size + play.forced
    play.end()
    assert [slot.frame for slot in play.sent] == list(range(play.added))
    assert all((slot.answer == slot.frame) != (slot.dropped is not None) for slot in play.sent)
    assert drop_oldest or not any(slot.dropped for slot in play.sent)


@given(Events, st.lists(st.integers(0, 7), min_size=120, max_size=120), st.integers(1, 4))
def test_the_newest_frame_is_never_dropped_and_only_a_full_window_drops(
    events: list[str], choices: list[int], size: int
) -> None:
    play = Play(size, drop_oldest=True, tells=True)
    for event, choice in zip(events, choices, strict=False):
        waiting, held = play.window.waiting, len(play.computing) + play.untaken()
        play.do(event, choice)
        if event == "add" and waiting is not None and waiting.dropped:
            assert held + sum(slot.answer is not None for slot in play.window._slots) >= size
            assert play.window.waiting is not None
            assert play.window.waiting.frame == play.added - 1
    play.end()
    assert not play.sent or play.sent[-1].answer == play.added - 1


def test_waiting_never_drops_and_closes_the_window_instead() -> None:
    play = Play(2, drop_oldest=False, tells=True)
    play.add()
    assert play.window.may_read
    play.add()
    assert not play.window.may_read
    play.finish(0)
    assert not play.window.may_read  # an answer that is not sent still counts
    play.send()
    assert play.window.may_read


@pytest.mark.parametrize(("computed", "expected"), [(False, Drop.SERVER), (True, Drop.CLIENT)])
def test_a_drop_says_who_is_behind(computed: bool, expected: Drop) -> None:
    play = Play(2, drop_oldest=True, tells=True)
    for _ in range(3):
        play.add()
    waiting = play.window.waiting
    if computed:
        play.finish(0)
        play.finish(0)
    play.add()
    assert waiting is not None
    assert waiting.dropped == expected


@pytest.mark.parametrize(
    ("size", "finished", "expected"),
    [(2, 1, Drop.SERVER), (4, 2, Drop.SERVER), (4, 3, Drop.CLIENT), (3, 2, Drop.CLIENT)],
)
def test_the_server_is_behind_while_it_computes_half_of_the_window(size: int, finished: int, expected: Drop) -> None:
    play = Play(size, drop_oldest=True, tells=True)
    for _ in range(size + 1):
        play.add()
    waiting = play.window.waiting
    for _ in range(finished):
        play.finish(0)
    play.add()
    assert waiting is not None
    assert waiting.dropped is expected


def test_answers_count_until_they_are_taken() -> None:
    play = Play(2, drop_oldest=True, tells=True)
    for _ in range(3):
        play.add()
    for _ in range(2):
        play.finish(0)
        play.send()
    assert play.computing == []
    play.take()
    play.add()  # brings the word of it: 2 is computed, 3 waits
    assert [slot.frame for slot in play.computing] == [2]
    assert play.window.waiting is not None


def test_without_word_of_it_sent_answers_do_not_count() -> None:
    play = Play(2, drop_oldest=True, tells=False)
    for _ in range(3):
        play.add()
    play.finish(0)
    play.send()
    assert [slot.frame for slot in play.computing] == [1, 2]


def test_unsent_drops_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNSENT", 3)
    play = Play(2, drop_oldest=True, tells=True)
    for _ in range(10):
        play.add()
    assert play.added == 5


def test_frames_wait_unless_they_are_to_be_dropped() -> None:
    window: Window[int, int] = Window(1)
    assert [slot.frame for slot in window.add(0)] == [0]
    assert not window.may_read


def test_a_frame_that_can_wait_no_longer_is_computed_though_the_window_is_full() -> None:
    play = Play(1, drop_oldest=True, tells=True)
    for _ in range(2):
        play.add()
    play.force()
    assert [slot.frame for slot in play.computing] == [0, 1]
    assert play.window.waiting is None
    play.force()
    assert play.forced == 1, "nothing waits any more"


def test_all_answers_that_were_taken_make_room() -> None:
    play = Play(2, drop_oldest=True, tells=True)
    for _ in range(2):
        play.add()
    for _ in range(2):
        play.finish(0)
        play.send()
        play.take()
    for _ in range(2):
        play.add()
    assert [slot.frame for slot in play.computing] == [2, 3]


def test_answers_count_no_longer_when_the_caller_stops_telling() -> None:
    play = Play(1, drop_oldest=True, tells=True)
    play.add()
    play.finish(0)
    play.send()
    play.add()
    assert play.computing == []
    play.tells = False
    play.add()
    assert [slot.frame for slot in play.computing] == [1]
