from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from damoserve_profiles.imaging import Size
from damoserve_server.errors import QueueFull
from damoserve_server.inputs.buffers import SHARE_OF_LIMIT, Lease, Pool, affordable_slots

SLOTS = 3


def test_a_lease_ends_once() -> None:
    lease = Pool(1, Size(2, 2)).lease()
    with lease as row:
        assert row.shape == (2, 2, 3)
    with pytest.raises(RuntimeError):
        lease.release()
    with pytest.raises(RuntimeError):
        _ = lease.row


def test_a_row_comes_back_when_its_user_fails() -> None:
    pool = Pool(1, Size(2, 2))
    with pytest.raises(ZeroDivisionError), pool.lease():
        _ = 1 / 0
    assert pool.free == 1


@pytest.mark.parametrize(
    ("limit", "slots"),
    [
        (f"{7 * 12 * SHARE_OF_LIMIT}\n", 7),
        (f"{7 * 12 * SHARE_OF_LIMIT - 1}\n", 6),
        ("12\n", 2),
        (f"{100 * 12 * SHARE_OF_LIMIT}\n", 9),
        ("max\n", 9),
        (None, 9),
    ],
)
def test_slots_fit_into_the_memory_of_the_container(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, limit: str | None, slots: int
) -> None:
    path = tmp_path / "memory.max"
    if limit is not None:
        path.write_text(limit)
    assert affordable_slots(wanted=9, least=2, size=Size(2, 2), limit=path) == slots
    assert [record.getMessage().startswith(f"{slots} buffers, not 9") for record in caplog.records] == [True] * (
        slots < 9
    )


class Leasing(RuleBasedStateMachine):
    """Nobody sees what others write, whatever the order of leases and releases."""

    leases: Bundle[Lease | None] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(SLOTS, Size(2, 3))
        self.written: dict[Lease, int] = {}

    @rule(target=leases, value=st.integers(0, 255))
    def lease(self, value: int) -> Lease | None:
        if len(self.written) == SLOTS:
            with pytest.raises(QueueFull):
                self.pool.lease()
            return None
        lease = self.pool.lease()
        lease.row[:] = value
        self.written[lease] = value
        return lease

    @rule(lease=consumes(leases))
    def release(self, lease: Lease | None) -> None:
        if lease is not None:
            lease.release()
            del self.written[lease]

    @invariant()
    def rows_are_apart(self) -> None:
        assert (self.pool.leased, self.pool.free) == (len(self.written), SLOTS - len(self.written))
        for lease, value in self.written.items():
            assert (lease.row == value).all()


TestLeasing = Leasing.TestCase
TestLeasing.settings = settings(max_examples=30, stateful_step_count=30)
