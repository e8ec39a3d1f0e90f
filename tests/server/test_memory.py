import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from damoserve_profiles.imaging import Size
from damoserve_server.errors import QueueFull
from damoserve_server.memory import Pool

SLOTS = 3


def test_a_lease_ends_once():
    lease = Pool(1, Size(2, 2)).lease()
    with lease as row:
        assert row.shape == (2, 2, 3)
    with pytest.raises(RuntimeError):
        lease.release()
    with pytest.raises(RuntimeError):
        _ = lease.row


def test_a_row_comes_back_when_its_user_fails():
    pool = Pool(1, Size(2, 2))
    with pytest.raises(ZeroDivisionError), pool.lease():
        _ = 1 / 0
    assert pool.free == 1


class Leasing(RuleBasedStateMachine):
    """Nobody sees what others write, whatever the order of leases and releases."""

    leases = Bundle("leases")

    def __init__(self):
        super().__init__()
        self.pool = Pool(SLOTS, Size(2, 3))
        self.written = {}

    @rule(target=leases, value=st.integers(0, 255))
    def lease(self, value):
        if len(self.written) == SLOTS:
            with pytest.raises(QueueFull):
                self.pool.lease()
            return None
        lease = self.pool.lease()
        lease.row[:] = value
        self.written[lease] = value
        return lease

    @rule(lease=consumes(leases))
    def release(self, lease):
        if lease is not None:
            lease.release()
            del self.written[lease]

    @invariant()
    def rows_are_apart(self):
        assert (self.pool.leased, self.pool.free) == (len(self.written), SLOTS - len(self.written))
        for lease, value in self.written.items():
            assert (lease.row == value).all()


TestLeasing = Leasing.TestCase
TestLeasing.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
