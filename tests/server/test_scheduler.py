import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from damoserve_server.errors import DeadlineExpired, DeadlineUnreachable, QueueFull, ShuttingDown
from damoserve_server.scheduler import HEAD_START, Policy, Scheduler

EXPECTED = {"slow": 8.0, "quick": 2.0}
POLICY = Policy(workers=2, max_batch_size=3, max_batch_wait=1.0, max_queue=4)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


ALONE = Policy(workers=1, max_batch_size=4, max_batch_wait=0, max_queue=16)


def proportional(profile, size):
    return EXPECTED[profile] * size


def make(policy=POLICY, expected=proportional):
    clock = Clock()
    return Scheduler(policy, expected, clock), clock


def submitted(deadlines, policy=ALONE, expected=proportional):
    """A scheduler in which requests of one profile wait, and its clock."""
    scheduler, clock = make(policy, expected)
    for deadline in deadlines:
        scheduler.submit("quick", deadline, deadline)
    return scheduler, clock


def names(batch):
    return [ticket.payload for ticket in batch.tickets]


def test_a_lone_request_waits_for_others_so_long_and_no_longer():
    scheduler, clock = make(Policy(workers=1, max_batch_size=3, max_batch_wait=1.0, max_queue=4))
    scheduler.submit("quick", "a", deadline=100)
    clock.now = 0.5
    scheduler.submit("quick", "b", deadline=50)
    assert scheduler.take() is None
    assert scheduler.next_event() == 1
    clock.now = 1
    assert names(scheduler.take()) == ["b", "a"]


def test_a_full_batch_starts_at_once_with_the_most_urgent():
    scheduler, _ = make(Policy(workers=1, max_batch_size=3, max_batch_wait=1.0, max_queue=4))
    for name, deadline in {"a": 90, "b": 100, "c": 80, "d": 70}.items():
        scheduler.submit("quick", name, deadline)
    assert names(scheduler.take()) == ["d", "c", "a"]
    assert scheduler.take() is None


def test_a_request_that_cannot_wait_starts_at_once():
    scheduler, clock = make()
    scheduler.submit("quick", "a", deadline=3.0)
    assert scheduler.next_event() == 3.0 - (1 + HEAD_START) * EXPECTED["quick"] == 0.5
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
    with pytest.raises(QueueFull):
        scheduler.submit("slow", "e", deadline=100)


def test_a_batch_is_no_larger_than_its_most_urgent_request_allows():
    scheduler, _ = submitted([5, 100, 100, 100])
    assert names(scheduler.take()) == [5, 100]


@pytest.mark.parametrize(
    ("seconds", "size"),
    [
        ([2, 4, 6, 8], 4),  # nothing gained, nothing lost
        ([2, 4.1, 6.2, 8.3], 4),  # noise
        ([2, 4.4, 6.6, 8.8], 1),
        ([2, 2.5, 4.5, 8], 2),
        ([2, 2, 2, 2], 4),
    ],
)
def test_the_batch_size_with_the_best_throughput(seconds, size):
    scheduler, _ = submitted([100] * 4, expected=lambda profile, size: seconds[size - 1])
    assert len(scheduler.take().tickets) == size


def test_what_waits_is_shared_among_the_free_workers():
    scheduler, _ = submitted([100] * 4, Policy(workers=2, max_batch_size=4, max_batch_wait=0, max_queue=4))
    assert [len(scheduler.take().tickets) for _ in range(2)] == [2, 2]


def test_the_expected_wait_counts_batches_as_they_will_form():
    scheduler, _ = submitted([90] * 6, expected=lambda profile, size: 2 + size)
    assert scheduler.expected_wait(100) == 6 + 4
    assert scheduler.expected_wait(80) == 0
    scheduler, _ = submitted([90] * 6, Policy(workers=2, max_batch_size=4, max_batch_wait=0, max_queue=6))
    assert scheduler.expected_wait(100) == 6


def test_what_cannot_end_in_time_is_dropped_when_a_worker_is_free():
    scheduler, clock = submitted([100, 6, 8], Policy(workers=1, max_batch_size=1, max_batch_wait=0, max_queue=4))
    running = scheduler.take()
    clock.now = 6.5
    assert scheduler.drop() == []
    scheduler.finish(running)
    assert scheduler.next_event() <= clock.now
    [(ticket, error)] = scheduler.drop()
    assert (ticket.payload, type(error)) == (8, DeadlineUnreachable)
    assert error.details == {"expected_ms": "2000.0", "budget_ms": "1500.0"}
    assert names(scheduler.take()) == [100]


def test_an_estimate_that_falls_in_time_saves_what_waits():
    seconds = {"quick": 2.0}
    policy = Policy(workers=1, max_batch_size=1, max_batch_wait=0, max_queue=4)
    scheduler, clock = submitted([6, 7], policy, lambda profile, size: seconds[profile])
    running = scheduler.take()
    clock.now = 6.0
    assert scheduler.drop() == []
    seconds["quick"] = 0.5
    scheduler.finish(running)
    assert scheduler.drop() == []
    assert names(scheduler.take()) == [7]


def test_the_close_hands_out_all_that_wait_and_nothing_comes_in():
    scheduler, _ = submitted([100, 90])
    assert [ticket.payload for ticket in scheduler.close()] == [90, 100]
    assert (scheduler.queued("quick"), scheduler.take(), scheduler.next_event()) == (0, None, None)
    with pytest.raises(ShuttingDown):
        scheduler.submit("quick", "a", deadline=100)


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
        everywhere = sum(self.scheduler.queued(name) for name in EXPECTED)
        try:
            ticket = self.scheduler.submit(profile, None, self.clock.now + patience)
        except QueueFull:
            assert everywhere == POLICY.max_queue
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
            assert ticket.deadline >= self.clock.now + EXPECTED[ticket.profile] * len(batch.tickets)
            self.waiting.remove(ticket)
        left = [ticket.deadline for ticket in self.waiting if ticket.profile == batch.profile]
        in_time = [deadline for deadline in left if deadline >= self.clock.now + EXPECTED[batch.profile]]
        assert all(ticket.deadline <= other for ticket in batch.tickets for other in in_time)
        return batch

    @rule(batch=consumes(batches))
    def finish(self, batch):
        self.scheduler.finish(batch)
        self.running -= 1

    @rule()
    def drop(self):
        needed = EXPECTED if self.running < POLICY.workers else dict.fromkeys(EXPECTED, 0)
        now = self.clock.now
        due = {t for t in self.waiting if t.deadline <= now or t.deadline < now + needed[t.profile]}
        dropped = dict(self.scheduler.drop())
        assert dropped.keys() == due
        for ticket, error in dropped.items():
            assert isinstance(error, DeadlineExpired) == (ticket.deadline <= now)
        self.waiting = [ticket for ticket in self.waiting if ticket not in due]

    @rule()
    def something_happens_at_the_next_event(self):
        due = self.scheduler.next_event()
        if due is None:
            assert not self.waiting
            return
        self.clock.now = max(self.clock.now, due)
        dropped = dict(self.scheduler.drop())
        batch = self.scheduler.take()
        assert dropped or batch
        for ticket in (*dropped, *(batch.tickets if batch else ())):
            self.waiting.remove(ticket)
        if batch:
            self.scheduler.finish(batch)

    @invariant()
    def nothing_is_lost_and_everything_is_bounded(self):
        assert self.running <= POLICY.workers
        assert len(self.waiting) <= POLICY.max_queue
        for profile in EXPECTED:
            assert self.scheduler.queued(profile) == sum(ticket.profile == profile for ticket in self.waiting)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
