"""What is promised of the routing, for arbitrary arrivals, profiles and latencies, on a clock of the test's own."""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulator import LADDER, Arrival, Outcome, Simulation, accuracy, bursts
from damoserve_server.errors import DeadlineUnreachable
from damoserve_server.scheduling.baselines import FixedProfile, ModelSwitching, SlackFit, StaticTiers
from damoserve_server.scheduling.deadline import DeadlinePolicy
from damoserve_server.scheduling.policy import Cost, Pause, Policy, QueueState, Requirements, Start
from damoserve_server.scheduling.scheduler import Ticket

ALL = tuple(LADDER)
POLICIES: dict[str, Callable[[], Policy]] = {
    "deadline": lambda: DeadlinePolicy(0.005),
    "fixed": lambda: FixedProfile("int8"),
    "tiers": lambda: StaticTiers(((0.2, "fp32"), (0.0, "int8+pruned"))),
    "switching": ModelSwitching,
    "slackfit": SlackFit,
}
SECONDS = st.floats(0.001, 0.3)


def ours() -> DeadlinePolicy:
    return DeadlinePolicy(max_wait=0.005)


def serve(
    arrivals: Sequence[Arrival], costs: Mapping[str, Cost] = LADDER, policy: Policy | None = None, **fields: Any
) -> list[Outcome]:
    return Simulation(policy or ours(), costs, **fields).run(arrivals)


@st.composite
def ladders(draw: st.DrawFn, batching: bool = True) -> dict[str, Cost]:
    """Profiles, the most accurate first, with any time for any batch."""
    costs = {}
    for number in range(draw(st.integers(1, 5))):
        first = draw(SECONDS)
        more = draw(st.lists(st.floats(0.0, 1.2), min_size=3, max_size=3)) if batching else [1.0] * 3
        seconds = [first]
        for factor in more:
            seconds.append(seconds[-1] + factor * first)
        costs[f"p{number}"] = Cost(0.9 - number / 10, tuple(seconds))
    return costs


@st.composite
def requests(draw: st.DrawFn, costs: Mapping[str, Cost]) -> list[Arrival]:
    names = list(costs)
    arrivals: list[Arrival] = []
    at = 0.0
    for _ in range(draw(st.integers(1, 30))):
        at += draw(st.floats(0, 0.2))
        chosen = draw(st.sets(st.sampled_from(names), min_size=1))
        allowed = tuple(name for name in names if name in chosen)
        objective = draw(st.none() | st.floats(0.001, 0.5))
        arrivals.append(Arrival(at, draw(st.floats(0.001, 1)), allowed, objective, draw(st.integers(1, 5))))
    return arrivals


@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)
@given(data=st.data())
@settings(max_examples=40)
def test_promises(make: Callable[[], Policy], data: st.DataObject) -> None:
    costs = data.draw(ladders())
    arrivals = data.draw(requests(costs))
    slower = data.draw(st.floats(0.5, 3))
    workers = data.draw(st.integers(1, 3))
    outcomes = serve(
        arrivals,
        costs,
        make(),
        workers=workers,
        max_queue=8,
        takes=lambda profile, size: slower * costs[profile].expected(size),
    )
    assert len(outcomes) == len(arrivals)
    for outcome in outcomes:
        assert (outcome.answered_at is None) != (outcome.error is None), "each ends once"
        deadline = outcome.arrival.at + outcome.arrival.budget
        if outcome.profile is not None:
            assert outcome.profile in outcome.arrival.allowed, "a profile that is not allowed never serves"
            assert outcome.started_at is not None
            assert outcome.started_at < deadline, "nothing expired is computed"
            assert outcome.error is None
        hopeless = min(costs[name].expected(1) for name in outcome.arrival.allowed) > outcome.arrival.budget + 1e-9
        if hopeless:
            assert isinstance(outcome.error, DeadlineUnreachable), "refused when it arrived"


@st.composite
def states(draw: st.DrawFn) -> QueueState[str, Ticket[str, Any]]:
    """Any queue, hopeless and unready requests included, beside any workers and any rate."""
    costs = draw(ladders())
    moments = st.floats(-1, 3)
    tickets: list[Ticket[str, Any]] = []
    for arrival in draw(requests(costs)):
        deadline = draw(st.floats(1e-3, 3))
        requirements = Requirements(
            arrival.allowed, deadline, min(deadline, draw(moments)), -draw(moments), arrival.priority
        )
        tickets.append(Ticket(requirements, draw(moments), ready=draw(st.booleans())))
    busy = tuple(draw(st.lists(st.floats(0, 1000), max_size=3)))
    rate, budget = draw(st.floats(0, 1e4)), draw(st.floats(0, 3))
    return QueueState(0.0, tickets, costs, draw(st.integers(1, 3)), busy, rate, budget, draw(st.floats(0, 1)))


@given(state=states())
@settings(max_examples=150)
def test_a_decision_starts_what_may_start(state: QueueState[str, Ticket[str, Any]]) -> None:
    decision = ours().decide(state)
    ready = [ticket for ticket in state.waiting if ticket.ready]
    assert (decision is None) == (not ready)
    if isinstance(decision, Pause):
        assert state.free == 1
        assert state.now < decision.until <= max(ticket.ready_at for ticket in ready) + 0.005
    elif decision is not None:
        assert len(set(decision.tickets)) == len(decision.tickets)
        assert len(decision.tickets) in state.costs[decision.profile].sizes
        for ticket in decision.tickets:
            assert ticket.ready
            assert decision.profile in ticket.requirements.allowed


@given(data=st.data())
@settings(max_examples=100)
def test_whoever_is_let_in_is_answered_in_time(data: st.DataObject) -> None:
    """With one worker, true estimates and equal budgets: whatever profiles are chosen, the last one pays for none."""
    costs = data.draw(ladders(batching=False))
    budget = data.draw(st.floats(0.01, 1))
    gaps = data.draw(st.lists(st.floats(0, 0.2), min_size=1, max_size=30))
    arrivals: list[Arrival] = []
    at = 0.0
    for gap in gaps:
        at += gap
        arrivals.append(Arrival(at, budget, tuple(costs)))
    for outcome in serve(arrivals, costs, max_queue=100):
        if isinstance(outcome.error, DeadlineUnreachable):
            continue
        assert outcome.in_time or outcome.answered_at == pytest.approx(outcome.arrival.at + budget)


def test_alone_everyone_gets_the_most_accurate_profile_that_is_in_time() -> None:
    budgets = {0.3: "fp32", 0.061: "fp32", 0.059: "pruned", 0.025: "int8", 0.011: "int8+pruned"}
    arrivals = [Arrival(10.0 * number, budget, ALL) for number, budget in enumerate(budgets)]
    assert [outcome.profile for outcome in serve(arrivals)] == list(budgets.values())


def test_one_request_is_no_rate_of_arrivals() -> None:
    """Slow profiles: as many more requests in the time of one would make all late."""
    costs = {"slow": Cost(0.6, (0.323,)), "quick": Cost(0.5, (0.100,))}
    arrivals = [Arrival(10.0 * number, 0.4, ("slow", "quick")) for number in range(3)]
    assert [outcome.profile for outcome in serve(arrivals, costs)] == ["slow"] * 3


def test_a_worker_that_hangs_is_not_counted_on() -> None:
    """Of two workers one hangs all the time; bursts that the other can bear are in time once that has shown."""
    hanging = iter([60.0])

    def takes(profile: str, size: int) -> float:
        return next(hanging, LADDER[profile].expected(size))

    arrivals = [Arrival(number // 18 / 2, 0.25, ALL) for number in range(360)]
    outcomes = serve(arrivals, workers=2, takes=takes)[36:]
    assert all(outcome.in_time for outcome in outcomes)
    assert accuracy(outcomes, LADDER)[1] > LADDER["int8+pruned"].accuracy


def test_a_burst_is_drained_by_quicker_profiles_and_all_are_in_time() -> None:
    outcomes = serve([Arrival(0.0, 0.25, ALL)] * 12)
    assert all(outcome.in_time for outcome in outcomes)
    assert {outcome.profile for outcome in outcomes} != {"int8+pruned"}, "no quicker than it has to be"
    assert accuracy(outcomes, LADDER)[1] > LADDER["int8"].accuracy - 0.01


def test_an_explicit_profile_makes_the_others_hurry() -> None:
    named = [Arrival(0.0, 0.25, ("fp32",))] * 3
    free = [Arrival(0.001, 0.25, ALL)] * 4
    outcomes = serve([*named, *free])
    assert all(outcome.in_time for outcome in outcomes)
    assert [outcome.profile for outcome in outcomes[:3]] == ["fp32"] * 3


def test_who_misses_the_tier_gets_the_quickest_and_holds_up_nobody() -> None:
    arrivals = [Arrival(0.0, 10.0, ALL, objective=0.005), Arrival(0.0, 0.045, ("pruned",))]
    late, urgent = serve(arrivals)
    assert (late.profile, urgent.profile) == ("int8+pruned", "pruned")
    assert urgent.in_time


def test_nobody_starves() -> None:
    """A request without priority against more urgent ones than can be served."""
    crowd = [Arrival(number / 200, 0.2, ALL, priority=1) for number in range(2000)]
    patient = Arrival(0.1, 5.0, ALL, priority=5)
    outcomes = serve(sorted([*crowd, patient], key=lambda arrival: arrival.at), max_queue=1000)
    [served] = [outcome for outcome in outcomes if outcome.arrival is patient]
    assert served.in_time


@pytest.mark.parametrize(
    ("seconds", "sizes"),
    [
        ((2.0, 4.0, 6.0, 8.0), {1}),
        ((2.0, 3.9, 5.9, 7.8), {1}),  # within the noise
        ((2.0, 2.5, 4.5, 8.0), {1, 2}),
        ((2.0, 2.0, 2.0, 2.0), {1, 2, 3, 4}),
    ],
)
def test_batches_form_only_where_they_win(seconds: tuple[float, ...], sizes: set[int]) -> None:
    cost = Cost(0.5, seconds)
    assert set(cost.sizes) == sizes
    simulation = Simulation(ours(), {"only": cost})
    outcomes = simulation.run([Arrival(0.0, 100.0, ("only",))] * 9)
    assert all(outcome.in_time for outcome in outcomes)
    largest = max(sum(outcome.started_at == other.started_at for other in outcomes) for outcome in outcomes)
    assert largest == max(sizes)


def test_under_bursts_it_is_in_time_more_often_and_more_accurate_than_a_fixed_profile_or_a_table() -> None:
    capacity = 2 / LADDER["fp32"].seconds_per_image
    arrivals = bursts(0.9 * capacity, 60, 0.25, ALL, seed=1)
    in_time, mean = accuracy(serve(arrivals, workers=2), LADDER)
    for policy in (FixedProfile("int8"), StaticTiers(((0.0, "int8"),))):
        other_in_time, other_mean = accuracy(serve(arrivals, policy=policy, workers=2), LADDER)
        assert in_time > other_in_time
        assert mean > other_mean
    assert in_time > 0.99


@pytest.mark.parametrize(
    ("last", "due", "expected"),
    [
        ("slow", 8.0, "slow"),
        (None, 8.0, "slow"),
        ("quick", 8.0, "quick"),
        ("quick", 8.79, "quick"),
        ("quick", 8.81, "slow"),
    ],
)
def test_a_more_accurate_profile_than_the_last_has_to_be_in_time_by_a_tenth_more(
    last: str | None, due: float, expected: str
) -> None:
    costs = {"slow": Cost(0.6, (8.0,)), "quick": Cost(0.5, (2.0,))}
    ticket: Ticket[str, Any] = Ticket(
        Requirements(("slow", "quick"), deadline=100.0, due=due, arrival=0.0), 0.0, ready=True
    )
    last_accuracy = inf if last is None else costs[last].accuracy
    decision = ours().decide(QueueState(0.0, [ticket], costs, last_accuracy=last_accuracy))
    assert isinstance(decision, Start)
    assert decision.profile == expected


def test_the_last_of_a_batch_waits_for_no_other_but_the_batch() -> None:
    """Two slow images take 4.5, and both are due at 5. After the other, even quickly, the second would be late."""
    costs = {"slow": Cost(0.6, (4.0, 4.5)), "quick": Cost(0.5, (2.0, 2.5))}
    requirements = Requirements(("slow", "quick"), deadline=100.0, due=5.0, arrival=0.0)
    tickets: list[Ticket[str, Any]] = [Ticket(requirements, 0.0, ready=True) for _ in range(2)]
    decision = ours().decide(QueueState(0.0, tickets, costs))
    assert isinstance(decision, Start)
    assert (decision.profile, len(decision.tickets)) == ("slow", 2)
