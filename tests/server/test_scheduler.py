import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from damoserve_server.errors import DeadlineExpired, DeadlineUnreachable, QueueFull
from damoserve_server.scheduler import Policy, Scheduler

EXPECTED = {"slow": 8.0, "quick": 2.0}
POLICY = Policy(workers=2, max_batch_size=3, max_batch_wait=1.0, max_queue=4)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def make(policy=POLICY):
    clock = Clock()
    return Scheduler(policy, lambda profile, size: EXPECTED[profile] * size, clock), clock


def names(batch):
    return [ticket.payload for ticket in batch.tickets]


def test_a_lone_request_waits_for_others_so_long_and_no_longer():
    scheduler, clock = make()
    scheduler.submit("quick", "a", deadline=100)
    clock.now = 0.5
    scheduler.submit("quick", "b", deadline=50)
    assert scheduler.take() is None
    assert scheduler.next_event() == 1
    clock.now = 1
    assert names(scheduler.take()) == ["b", "a"]


def test_a_full_batch_starts_at_once_with_the_most_urgent():
    scheduler, _ = make()
    for name, deadline in {"a": 90, "b": 100, "c": 80, "d": 70}.items():
        scheduler.submit("quick", name, deadline)
    assert names(scheduler.take()) == ["d", "c", "a"]
    assert scheduler.take() is None


def test_a_request_that_cannot_wait_starts_at_once():
    scheduler, clock = make()
    scheduler.submit("quick", "a", deadline=2.5)
    assert scheduler.next_event() == 0.5
    clock.now = 0.5
    assert names(scheduler.take()) == ["a"]


def test_the_profile_with_the_most_urgent_request_goes_first():
    scheduler, clock = make()
    scheduler.submit("slow", "a", deadline=90)
    scheduler.submit("quick", "b", deadline=80)
    clock.now = 1
    assert [names(scheduler.take()), names(scheduler.take())] == [["b"], ["a"]]


def test_no_batch_without_a_free_worker():
    scheduler, _ = make(Policy(workers=1, max_batch_size=1, max_batch_wait=0, max_queue=4))
    scheduler.submit("slow", "a", deadline=100)
    scheduler.submit("slow", "b", deadline=90)
    batch = scheduler.take()
    assert scheduler.take() is None
    assert scheduler.next_event() == 100
    scheduler.finish(batch)
    assert names(scheduler.take()) == ["a"]


def test_the_expected_wait_counts_what_runs_and_what_is_more_urgent():
    scheduler, clock = make(Policy(workers=1, max_batch_size=1, max_batch_wait=0, max_queue=4))
    assert scheduler.expected_wait(100) == 0
    scheduler.submit("slow", "a", deadline=100)
    scheduler.take()
    scheduler.submit("quick", "b", deadline=50)
    scheduler.submit("quick", "c", deadline=70)
    clock.now = 3
    assert scheduler.expected_wait(40) == 5
    assert scheduler.expected_wait(60) == 7
    assert scheduler.expected_wait(80) == 9
    clock.now = 30
    assert scheduler.expected_wait(40) == 0


def test_refusals():
    scheduler, clock = make()
    clock.now = 10
    with pytest.raises(DeadlineExpired):
        scheduler.submit("quick", "a", deadline=10)
    with pytest.raises(DeadlineUnreachable):
        scheduler.submit("quick", "a", deadline=11.9)
    scheduler.submit("quick", "a", deadline=12)
    for name in "bcd":
        scheduler.submit("quick", name, deadline=100)
    with pytest.raises(QueueFull) as refusal:
        scheduler.submit("quick", "e", deadline=100)
    assert refusal.value.retry_after == 6
    scheduler.submit("slow", "e", deadline=100)


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order."""

    tickets = Bundle("tickets")
    batches = Bundle("batches")

    def __init__(self):
        super().__init__()
        self.scheduler, self.clock = make()
        self.waiting = []
        self.running = 0

    @rule(target=tickets, profile=st.sampled_from(["slow", "quick"]), patience=st.integers(-1, 60))
    def submit(self, profile, patience):
        queued = self.scheduler.queued(profile)
        try:
            ticket = self.scheduler.submit(profile, None, self.clock.now + patience)
        except QueueFull:
            assert queued == POLICY.max_queue
        except DeadlineExpired:
            assert patience <= 0
        except DeadlineUnreachable:
            assert self.scheduler.expected_wait(self.clock.now + patience) + EXPECTED[profile] > patience
        else:
            self.waiting.append(ticket)
            return ticket
        assert self.scheduler.queued(profile) == queued
        return multiple()

    @rule(ticket=tickets)
    def cancel(self, ticket):
        assert self.scheduler.cancel(ticket) == (ticket in self.waiting)
        if ticket in self.waiting:
            self.waiting.remove(ticket)

    @rule(seconds=st.integers(0, 8))
    def advance(self, seconds):
        self.clock.now += seconds / 4

    @rule(target=batches)
    def take(self):
        batch = self.scheduler.take()
        if batch is None:
            return multiple()
        self.running += 1
        assert 1 <= len(batch.tickets) <= POLICY.max_batch_size
        for ticket in batch.tickets:
            assert ticket.profile == batch.profile
            assert ticket.deadline > self.clock.now
            self.waiting.remove(ticket)
        left = [ticket.deadline for ticket in self.waiting if ticket.profile == batch.profile]
        assert all(ticket.deadline <= other for ticket in batch.tickets for other in left if other > self.clock.now)
        return batch

    @rule(batch=consumes(batches))
    def finish(self, batch):
        self.scheduler.finish(batch)
        self.running -= 1

    @rule()
    def expire(self):
        due = [ticket for ticket in self.waiting if ticket.deadline <= self.clock.now]
        assert set(self.scheduler.expire()) == set(due)
        self.waiting = [ticket for ticket in self.waiting if ticket not in due]

    @rule()
    def something_happens_at_the_next_event(self):
        due = self.scheduler.next_event()
        if due is None:
            assert not self.waiting
            return
        self.clock.now = max(self.clock.now, due)
        expired = self.scheduler.expire()
        batch = self.scheduler.take()
        assert expired or batch
        for ticket in (*expired, *(batch.tickets if batch else ())):
            self.waiting.remove(ticket)
        if batch:
            self.scheduler.finish(batch)

    @invariant()
    def nothing_is_lost_and_everything_is_bounded(self):
        assert self.running <= POLICY.workers
        for profile in EXPECTED:
            queued = self.scheduler.queued(profile)
            assert queued == sum(ticket.profile == profile for ticket in self.waiting) <= POLICY.max_queue


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
