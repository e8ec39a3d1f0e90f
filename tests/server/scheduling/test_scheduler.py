"""The queue: who is let in, who leaves it and when."""

from collections.abc import Mapping
from math import exp, inf
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, consumes, invariant, multiple, rule

from damoserve_server.errors import DeadlineExpired, DeadlineUnreachable, QueueFull, ShuttingDown, WorkersLost
from damoserve_server.scheduling.deadline import DeadlinePolicy
from damoserve_server.scheduling.latency import MEMORY_SECONDS
from damoserve_server.scheduling.policy import Cost, Decision, P, Pause, QueueState, Requirements, Start, W
from damoserve_server.scheduling.scheduler import Batch, Closing, Scheduler, Ticket
from tests.support.clock import Clock

COSTS = {"slow": Cost(0.6, (8.0, 16.0, 24.0)), "quick": Cost(0.5, (2.0, 3.0, 4.0))}
MAX_QUEUE = 4
WORKERS = 2

Payload = str | float
Queue = Scheduler[str, Payload]
Queued = Ticket[str, Payload]
Taken = Batch[str, Payload]


def make(workers: int = 1, costs: Mapping[str, Cost] = COSTS, max_wait: float = 0.0) -> tuple[Queue, Clock]:
    clock = Clock()
    scheduler: Queue = Scheduler(DeadlinePolicy(max_wait), lambda name: costs[name], max_queue=MAX_QUEUE, clock=clock)
    scheduler.workers = workers
    return scheduler, clock


def requirements(profile: str, deadline: float, **fields: Any) -> Requirements[str]:
    defaults: dict[str, Any] = {"due": deadline, "arrival": 0.0}
    return Requirements((profile,), deadline, **defaults | fields)


def submit(scheduler: Queue, profile: str, deadline: float, name: str = "", **fields: Any) -> Queued:
    ticket = scheduler.admit(requirements(profile, deadline, **fields), 0.0)
    scheduler.make_ready(ticket, name or deadline)
    return ticket


def taken(scheduler: Queue) -> Taken:
    batch = scheduler.take()
    assert batch is not None
    return batch


def next_take(scheduler: Queue) -> float:
    at = scheduler.next_take()
    assert at is not None
    return at


def names(batch: Taken) -> list[Payload | None]:
    return [ticket.payload for ticket in batch.tickets]


def test_without_any_worker_nothing_is_let_in() -> None:
    scheduler: Queue = Scheduler(DeadlinePolicy(0.0), COSTS.__getitem__, max_queue=MAX_QUEUE, clock=Clock())
    with pytest.raises(WorkersLost):
        submit(scheduler, "quick", 90)
    scheduler.workers = 1
    submit(scheduler, "quick", 90)


def test_the_most_urgent_goes_first() -> None:
    scheduler, _ = make()
    for name, deadline in {"a": 90, "b": 100, "c": 80}.items():
        submit(scheduler, "slow", deadline, name)
    batch = taken(scheduler)
    assert names(batch) == ["c"]
    assert scheduler.take() is None, "no worker is free"
    scheduler.finish(batch)
    assert names(taken(scheduler)) == ["a"]


def test_what_is_still_decoded_waits_but_counts() -> None:
    scheduler, clock = make()
    ticket = scheduler.admit(requirements("slow", 20.0), decoding=5.0)
    assert scheduler.next_take() is None, "nothing happens before it is decoded"
    assert (scheduler.queued(ready=False), scheduler.queued(ready=True), scheduler.take()) == (1, 0, None)
    scheduler.admit(requirements("slow", 20.0), 0.0)
    with pytest.raises(DeadlineUnreachable):
        scheduler.admit(requirements("slow", 20.5), 0.0)
    clock.now = 6
    scheduler.make_ready(ticket, "a")
    assert names(taken(scheduler)) == ["a"]


def test_what_has_been_dropped_cannot_become_ready() -> None:
    scheduler, clock = make()
    ticket = scheduler.admit(requirements("quick", 3.0), 0.5)
    clock.now = 3.0
    assert [dropped for dropped, _ in scheduler.drop()] == [ticket]
    with pytest.raises(DeadlineExpired):
        scheduler.make_ready(ticket, "late")
    ticket = scheduler.admit(requirements("quick", 9.0), 0.5)
    scheduler.close()
    with pytest.raises(ShuttingDown):
        scheduler.make_ready(ticket, "late")


def test_the_soonest_end_counts_what_runs_and_what_is_more_urgent() -> None:
    scheduler, clock = make()
    submit(scheduler, "slow", 100)
    scheduler.take()
    submit(scheduler, "slow", 50)
    clock.now = 3

    def end(deadline: float) -> float:
        ticket = scheduler.admit(requirements("quick", deadline), 0.0)
        scheduler.withdraw(ticket)
        return scheduler.soonest_end(ticket)

    assert (end(40), end(60)) == (8 + 2, 8 + 8 + 2)


def test_the_soonest_end_counts_batches_as_they_will_form() -> None:
    scheduler, clock = make()
    for _ in range(3):
        submit(scheduler, "quick", 90)
    ticket = scheduler.admit(requirements("quick", 90), 0.0)
    assert scheduler.soonest_end(ticket) == 4 + 2
    scheduler.withdraw(ticket)
    clock.now = 10.0  # when no more are expected to come
    assert len(taken(scheduler).tickets) == 3
    submit(scheduler, "quick", 90)
    ticket = scheduler.admit(requirements("quick", 90), 0.0)
    assert scheduler.soonest_end(ticket) == 10 + 4 + 3, "behind a full batch, in one with the other"
    slow = scheduler.admit(requirements("slow", 90.5), 0.0)
    assert scheduler.soonest_end(slow) == 10 + 4 + 3 + 8, "the rest of another profile takes no more than it is"


def test_of_alternatives_the_first_that_is_in_time_is_chosen_else_the_soonest() -> None:
    scheduler, _ = make()
    slow, quick = (requirements(profile, 100.0, due=9.0) for profile in ("slow", "quick"))
    assert scheduler.choose([slow, quick], 0.0) is slow
    submit(scheduler, "quick", 4.0)
    assert scheduler.choose([slow, quick], 0.0) is quick, "slow would end at 10"
    assert scheduler.choose([slow, quick], 8.0) is quick, "both are late"
    scheduler.workers = 0
    assert scheduler.choose([slow, quick], 0.0) is slow, "to be refused"


def test_decoding_counts_in_admission() -> None:
    scheduler, clock = make()
    clock.now = 10.0
    with pytest.raises(DeadlineUnreachable) as refusal:
        scheduler.admit(requirements("quick", 15.0), decoding=3.5)
    assert refusal.value.details == {"expected_ms": "5500.0", "budget_ms": "5000.0"}
    ticket = scheduler.admit(requirements("quick", 15.0), decoding=3.0)
    assert ticket.ready_at == 13.0
    assert scheduler.soonest_end(ticket) == 15.0


def test_decoding_counts_in_the_choice_of_alternatives() -> None:
    scheduler, _ = make()
    slow, quick = (requirements(profile, 100.0, due=9.0) for profile in ("slow", "quick"))
    assert scheduler.choose([slow, quick], 1.0) is slow, "it ends when it is due"
    assert scheduler.choose([slow, quick], 1.5) is quick


def test_what_was_started_last_is_remembered_for_the_next_decision() -> None:
    scheduler, clock = make()

    def served(budget: float) -> str:
        clock.now += 100.0  # long after the last: nobody else is expected
        ticket = scheduler.admit(Requirements(("slow", "quick"), clock.now + 100, clock.now + budget, clock.now), 0.0)
        scheduler.make_ready(ticket, "any")
        batch = taken(scheduler)
        scheduler.finish(batch)
        return batch.profile

    assert [served(budget) for budget in (8.5, 3.0, 8.5, 8.9, 8.5)] == ["slow", "quick", "quick", "slow", "slow"]


def test_refusals() -> None:
    scheduler, clock = make()
    clock.now = 10
    with pytest.raises(DeadlineExpired):
        submit(scheduler, "quick", 10)
    with pytest.raises(DeadlineUnreachable):
        submit(scheduler, "quick", 11.9)
    for _ in range(MAX_QUEUE):
        submit(scheduler, "quick", 100)
    with pytest.raises(QueueFull) as refusal:
        submit(scheduler, "quick", 100)
    assert refusal.value.retry_after == 4 + 3
    scheduler.workers = 0
    with pytest.raises(WorkersLost):
        submit(scheduler, "quick", 100)


def test_what_cannot_end_in_time_is_dropped_when_a_worker_is_free() -> None:
    scheduler, clock = make()
    running_for = submit(scheduler, "slow", 100)
    running = taken(scheduler)
    assert running.tickets == (running_for,)
    submit(scheduler, "quick", 11)
    clock.now = 9.5
    assert scheduler.drop() == []
    scheduler.finish(running)
    [(ticket, error)] = scheduler.drop()
    assert (ticket.payload, type(error)) == (11, DeadlineUnreachable)
    assert error.details == {"expected_ms": "2000.0", "budget_ms": "1500.0"}


def test_what_waits_is_dropped_at_its_deadline_or_when_it_can_no_longer_be_met() -> None:
    scheduler, clock = make()
    submit(scheduler, "slow", 100)
    running = taken(scheduler)
    submit(scheduler, "quick", 11)
    clock.now = 10.5
    assert scheduler.drop() == [], "no worker is free, and it may still be refused in time"
    clock.now = 11.0
    [(_, error)] = scheduler.drop()
    assert isinstance(error, DeadlineExpired)
    submit(scheduler, "quick", 16)
    clock.now = 14.0
    scheduler.finish(running)
    assert scheduler.drop() == [], "it would end at its deadline"


class Watcher:
    """A policy that starts what came first, alone, and keeps what it was told."""

    def __init__(self) -> None:
        self.states: list[QueueState[Any, Any]] = []

    def decide(self, state: QueueState[P, W]) -> Decision[P, W]:
        self.states.append(state)
        [first, *_] = state.waiting
        return Start(first.requirements.allowed[0], (first,))


def test_the_policy_is_told_what_waits_what_runs_and_what_came_lately() -> None:
    policy, clock = Watcher(), Clock()
    scheduler: Queue = Scheduler(policy, COSTS.__getitem__, max_queue=MAX_QUEUE, clock=clock)
    scheduler.workers = 3
    clock.now = 10.0
    tickets = [submit(scheduler, "slow", 100.0, due=14.0), submit(scheduler, "quick", 100.0, due=16.0)]
    scheduler.take()
    clock.now = 10.05
    scheduler.take()
    first, second = policy.states
    assert (first.now, first.waiting, first.costs) == (10.0, tickets, COSTS)
    assert (first.free, first.busy, first.last_accuracy) == (3, (), inf)
    assert (first.rate, first.budget) == pytest.approx((1 / MEMORY_SECONDS, 5.0))
    assert (second.now, second.waiting, second.costs) == (10.05, tickets[1:], {"quick": COSTS["quick"]})
    assert (second.free, second.last_accuracy) == (2, 0.6)
    assert second.busy == pytest.approx((7.95,))
    assert (second.rate, second.budget) == pytest.approx((exp(-0.05 / MEMORY_SECONDS) / MEMORY_SECONDS, 5.0))


def test_company_that_is_not_ready_could_not_have_joined() -> None:
    scheduler: Queue = Scheduler(Watcher(), COSTS.__getitem__, max_queue=MAX_QUEUE, clock=Clock())
    scheduler.workers = 2
    submit(scheduler, "quick", 90)
    scheduler.admit(requirements("quick", 90), decoding=5.0)
    scheduler.admit(requirements("slow", 90), decoding=5.0)
    assert taken(scheduler).closing is Closing.ALL_READY


class Hesitant(Watcher):
    """Pauses for a second before whatever it starts."""

    def decide(self, state: QueueState[P, W]) -> Decision[P, W]:
        start = super().decide(state)
        return Pause(state.now + 1.0) if len(self.states) % 2 else start


@pytest.mark.parametrize(("seconds", "closing"), [(0.0, Closing.ALL_READY), (0.5, Closing.WAITED)])
def test_only_a_pause_that_lasted_was_one(seconds: float, closing: Closing) -> None:
    clock = Clock()
    scheduler: Queue = Scheduler(Hesitant(), COSTS.__getitem__, max_queue=MAX_QUEUE, clock=clock)
    scheduler.workers = 1
    submit(scheduler, "quick", 90)
    assert scheduler.take() is None
    scheduler.make_ready(scheduler.admit(requirements("slow", 90), 0.0), "other")  # so that it is asked again
    clock.now += seconds
    batch = taken(scheduler)
    assert (batch.closing, batch.held_since) == (closing, 0.0)


def test_batches_of_workers_that_are_gone_make_no_room() -> None:
    """Two run, but one worker is left: what is quicker starts behind the other all the same."""
    scheduler, _ = make(workers=2)
    for _ in range(2):
        submit(scheduler, "slow", 90)
    for _ in range(2):
        scheduler.take()
    submit(scheduler, "slow", 50)
    ticket = scheduler.admit(requirements("quick", 60), 0.0)
    assert scheduler.soonest_end(ticket) == 8 + 2
    scheduler.workers = 1
    assert scheduler.soonest_end(ticket) == 8 + 8 + 2


def test_a_batch_that_is_overdue_is_expected_to_be_so_for_as_long_again() -> None:
    batch: Taken = Batch("quick", (), started=5.0, expected_end=8.0)
    assert [batch.remaining(now) for now in (5.0, 8.0, 10.0)] == [3.0, 0.0, 2.0]


def test_an_estimate_that_falls_in_time_saves_what_waits() -> None:
    costs = {"quick": Cost(0.5, (2.0,))}
    scheduler, clock = make(costs=costs)
    submit(scheduler, "quick", 7, "first")
    running = taken(scheduler)
    submit(scheduler, "quick", 7, "second")
    clock.now = 6.0
    assert scheduler.drop() == []
    costs["quick"] = Cost(0.5, (0.5,))
    scheduler.finish(running)
    assert scheduler.drop() == []
    assert names(taken(scheduler)) == ["second"]


def test_a_tier_may_be_missed_but_a_deadline_may_not() -> None:
    scheduler, _ = make()
    submit(scheduler, "slow", 100, "late for its tier", due=5.0)
    submit(scheduler, "slow", 50, "in time")
    assert names(taken(scheduler)) == ["in time"], "who is late already makes nobody else late"


def test_priority_is_worth_time_and_waiting_makes_up_for_it() -> None:
    scheduler, _ = make()
    submit(scheduler, "slow", 50.0, "patient")
    submit(scheduler, "slow", 200.0, "urgent", priority=1)
    submit(scheduler, "slow", 250.0, "young", priority=1, arrival=48.0)
    order: list[Payload | None] = []
    while (batch := scheduler.take()) is not None:
        order += names(batch)
        scheduler.finish(batch)
    assert order == ["urgent", "patient", "young"]


def test_a_pause_ends_when_company_comes() -> None:
    scheduler, _ = make(max_wait=1.0, costs={"quick": Cost(0.5, (2.0, 3.0))})
    submit(scheduler, "quick", 900, "first")
    coming = scheduler.admit(requirements("quick", 900), decoding=0.5)
    assert scheduler.take() is None
    assert 0 < next_take(scheduler) <= 0.5
    scheduler.make_ready(coming, "second")
    assert names(taken(scheduler)) == ["first", "second"]


def test_a_pause_that_is_over_before_it_is_waited_for_is_no_end() -> None:
    scheduler, clock = make(max_wait=1.0, costs={"quick": Cost(0.5, (2.0, 3.0))})
    submit(scheduler, "quick", 900, "first")
    scheduler.admit(requirements("quick", 900), decoding=0.5)
    assert scheduler.take() is None
    clock.now = 2.0
    assert next_take(scheduler) <= 2.0
    assert names(taken(scheduler)) == ["first"]
    assert scheduler.next_take() is None, "whoever waits for that would never sleep"


def test_a_pause_ends_when_another_worker_is_free() -> None:
    scheduler, _ = make(workers=2, max_wait=1.0, costs={"quick": Cost(0.5, (2.0, 3.0))})
    submit(scheduler, "quick", 900)
    running = taken(scheduler)
    submit(scheduler, "quick", 900, "first")
    scheduler.admit(requirements("quick", 900), decoding=0.5)
    assert scheduler.take() is None
    scheduler.finish(running)
    assert names(taken(scheduler)) == ["first"]


def test_where_batches_win_a_batch_waits_a_little_for_a_burst_to_show() -> None:
    scheduler, clock = make(max_wait=1.0, costs={"quick": Cost(0.5, (10.0, 10.0, 10.0))})
    submit(scheduler, "quick", 900, "first")
    assert scheduler.take() is None
    assert scheduler.next_take() == pytest.approx(0.4)
    clock.now = 0.4
    assert names(taken(scheduler)) == ["first"]


def test_where_batches_do_not_win_nobody_waits_for_one() -> None:
    scheduler, _ = make(max_wait=1.0, costs={"quick": Cost(0.5, (10.0, 20.0, 30.0))})
    submit(scheduler, "quick", 900, "first")
    assert names(taken(scheduler)) == ["first"]


def test_what_waits_is_shared_among_the_free_workers() -> None:
    scheduler, _ = make(workers=2)
    for _ in range(4):
        submit(scheduler, "quick", 90)
    assert [len(taken(scheduler).tickets) for _ in range(2)] == [2, 2]


def test_a_pause_ends_without_company_too() -> None:
    scheduler, clock = make(max_wait=1.0)
    submit(scheduler, "quick", 90, "first")
    scheduler.admit(requirements("quick", 90), decoding=0.5)
    starts: list[Payload | None] = []
    while not starts:
        batch = scheduler.take()
        starts += [] if batch is None else names(batch)
        clock.now = scheduler.next_take() or clock.now
    assert starts == ["first"]
    assert clock.now <= 1.0


def test_a_batch_tells_why_it_is_no_larger() -> None:
    scheduler, clock = make(costs={"quick": Cost(0.5, (2.0, 3.0, 4.0))})
    for _ in range(4):
        submit(scheduler, "quick", 90)
    clock.now = 20.0  # when no more are expected to come
    full = taken(scheduler)
    assert (len(full.tickets), full.closing) == (3, Closing.FULL)
    scheduler.finish(full)
    rest = taken(scheduler)
    assert (len(rest.tickets), rest.closing, rest.held_since) == (1, Closing.ALL_READY, inf)
    scheduler.finish(rest)
    submit(scheduler, "quick", clock.now + 2.5, "urgent", arrival=clock.now)
    submit(scheduler, "quick", 90, "patient", arrival=clock.now)
    urgent = taken(scheduler)
    assert (names(urgent), urgent.closing) == (["urgent"], Closing.SMALLER)


def test_where_no_batch_gains_every_batch_is_full() -> None:
    scheduler, _ = make(costs={"quick": Cost(0.5, (10.0, 20.0, 30.0))})
    submit(scheduler, "quick", 900)
    submit(scheduler, "quick", 900)
    assert taken(scheduler).closing == Closing.FULL


def test_a_batch_knows_since_when_it_was_held_back_for_company() -> None:
    scheduler, clock = make(max_wait=1.0, costs={"quick": Cost(0.5, (10.0, 10.0, 10.0))})
    clock.now = 5.0
    submit(scheduler, "quick", 900, "first")
    assert scheduler.take() is None
    clock.now = 5.1
    submit(scheduler, "quick", 900, "second")
    assert scheduler.take() is None, "the third may be near"
    clock.now = 7.0
    batch = taken(scheduler)
    assert (names(batch), batch.closing, batch.held_since) == (["first", "second"], Closing.WAITED, 5.0)
    scheduler.finish(batch)
    abandoned = submit(scheduler, "quick", 900, "abandoned")
    assert scheduler.take() is None
    scheduler.withdraw(abandoned)
    clock.now = 20.0
    submit(scheduler, "quick", clock.now + 10.01, "alone")
    alone = taken(scheduler)
    assert (alone.closing, alone.held_since) == (Closing.ALL_READY, inf), "what was held has left"


def test_the_close_hands_out_all_that_wait_and_nothing_comes_in() -> None:
    scheduler, _ = make()
    tickets = [submit(scheduler, "quick", 100), scheduler.admit(requirements("quick", 90), 0.5)]
    assert scheduler.close() == tickets
    assert (scheduler.queued(ready=True), scheduler.take()) == (0, None)
    with pytest.raises(ShuttingDown):
        submit(scheduler, "quick", 100)


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order."""

    tickets = Bundle("tickets")
    batches = Bundle("batches")

    def __init__(self) -> None:
        super().__init__()
        self.scheduler, self.clock = make(WORKERS, max_wait=0.5)
        self.waiting: list[Queued] = []
        self.running = 0

    @rule(
        target=tickets,
        allowed=st.sampled_from([("slow",), ("quick",), ("slow", "quick")]),
        patience=st.integers(-1, 60),
        hope=st.integers(0, 60),
        priority=st.integers(1, 5),
    )
    def admit(
        self, allowed: tuple[str, ...], patience: int, hope: int, priority: int
    ) -> Queued | MultipleResults[Queued]:
        now = self.clock.now
        quickest = min(COSTS[profile].seconds[0] for profile in allowed)
        requirements = Requirements(allowed, now + patience, now + min(patience, hope), now, priority)
        before = len(self.waiting)
        try:
            ticket = self.scheduler.admit(requirements, 0.0)
        except QueueFull:
            assert before == MAX_QUEUE
        except DeadlineExpired:
            assert patience <= 0
        except DeadlineUnreachable:
            assert self.running or self.waiting or quickest > patience
        else:
            assert quickest <= patience, "what nothing can serve in time is refused at once"
            self.waiting.append(ticket)
            return ticket
        return multiple()

    @rule(ticket=tickets)
    def make_ready(self, ticket: Queued) -> None:
        if ticket in self.waiting:
            self.scheduler.make_ready(ticket, "payload")

    @rule(ticket=tickets)
    def withdraw(self, ticket: Queued) -> None:
        assert self.scheduler.withdraw(ticket) == (ticket in self.waiting)
        if ticket in self.waiting:
            self.waiting.remove(ticket)

    @rule(seconds=st.integers(0, 8))
    def advance(self, seconds: int) -> None:
        self.clock.now += seconds / 4

    @rule(target=batches)
    def take(self) -> Taken | MultipleResults[Taken]:
        self.drop()
        batch = self.scheduler.take()
        if batch is None:
            return multiple()
        self.running += 1
        assert 1 <= len(batch.tickets) <= 3
        for ticket in batch.tickets:
            assert ticket.ready
            assert batch.profile in ticket.requirements.allowed
            assert ticket.requirements.deadline > self.clock.now
            self.waiting.remove(ticket)
        return batch

    @rule(batch=consumes(batches))
    def finish(self, batch: Taken) -> None:
        self.scheduler.finish(batch)
        self.running -= 1

    @rule()
    def drop(self) -> None:
        now = self.clock.now
        free = self.running < WORKERS

        def late(ticket: Queued) -> bool:
            needed = min(COSTS[profile].seconds[0] for profile in ticket.requirements.allowed) if free else 0
            return ticket.requirements.deadline <= now or ticket.requirements.deadline < now + needed

        due = {ticket for ticket in self.waiting if late(ticket)}
        dropped = dict(self.scheduler.drop())
        assert dropped.keys() == due
        for ticket, error in dropped.items():
            assert isinstance(error, DeadlineExpired) == (ticket.requirements.deadline <= now)
        self.waiting = [ticket for ticket in self.waiting if ticket not in due]

    @rule()
    def a_free_worker_idles_only_for_a_while(self) -> None:
        self.drop()
        if self.running == WORKERS or not any(ticket.ready for ticket in self.waiting):
            return
        until = self.clock.now + 1
        while (batch := self.scheduler.take()) is None:
            self.clock.now = next_take(self.scheduler)
            assert self.clock.now <= until
            self.drop()
            if not any(ticket.ready for ticket in self.waiting):
                return
        for ticket in batch.tickets:
            self.waiting.remove(ticket)
        self.scheduler.finish(batch)

    @invariant()
    def nothing_is_lost_and_everything_is_bounded(self) -> None:
        assert self.running <= WORKERS
        assert len(self.waiting) <= MAX_QUEUE
        queued = self.scheduler.queued(ready=True) + self.scheduler.queued(ready=False)
        assert queued == len(self.waiting)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40)
