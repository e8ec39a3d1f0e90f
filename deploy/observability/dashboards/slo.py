"""Dashboard of service levels: how far tiers keep their objectives, and how fast the error budget burns.

The series are recorded by rules/slo.yml.
"""

from deploy.observability.dashboards import parts
from deploy.observability.dashboards.parts import Board, Panel, Row, figure, graph, query
from deploy.observability.dashboards.promql import OBJECTIVE, REQUEST_SECONDS, TIER, quantile, rate

MISSED = 'outcome=~"late|refused|expired|failed"'
BURN = "1: the budget lasts exactly its 30 days. Lines: where the alerts begin (docs/alerts.md)."
TARGET = f"avg by (tier) (damoserve:tier_target{{{TIER}}})"


def recorded(name: str) -> str:
    """Returns a recorded series by tier. It has no instances, but may have jobs; the worst of them is shown."""
    return f"max by (tier) (damoserve:{name}{{{TIER}}})"


def current() -> tuple[Panel, ...]:
    attainment = f"1 - {recorded('tier_missed:ratio_rate1h')}"
    left = f"min by (tier) (damoserve:tier_budget_left:30d{{{TIER}}})"
    return (
        figure(
            "Attainment in the last hour",
            "Share of requests answered within the objective, of all but invalid and cancelled ones.",
            "percentunit",
            query(attainment, "{{tier}}"),
        ).thresholds(parts.levels(parts.RED, (0.95, parts.ORANGE), (0.99, parts.GREEN))),
        figure(
            "Budget left of 30 days",
            "Share of the misses that the target allows which is not spent. Below 0 the target was missed: change "
            "less and add capacity until it has recovered.",
            "percentunit",
            query(left, "{{tier}}"),
        ).thresholds(parts.levels(parts.RED, (0, parts.ORANGE), (0.25, parts.GREEN))),
    )


def burns() -> tuple[Panel, ...]:
    fast = graph(
        "Burn rate, fast",
        f"Misses as multiples of what the target allows, over 5 minutes and an hour. {BURN}",
        "short",
        query(recorded("tier_burn:rate5m"), "{{tier}} 5m"),
        query(recorded("tier_burn:rate1h"), "{{tier}} 1h"),
    )
    slow = graph(
        "Burn rate, slow",
        f"The same over 30 minutes and six hours. {BURN}",
        "short",
        query(recorded("tier_burn:rate30m"), "{{tier}} 30m"),
        query(recorded("tier_burn:rate6h"), "{{tier}} 6h"),
    )
    return parts.lined(fast, (1, parts.ORANGE), (14.4, parts.RED)), parts.lined(slow, (1, parts.ORANGE), (6, parts.RED))


def attainment() -> tuple[Panel, ...]:
    reached = graph(
        "Attainment by tier, 5 minutes",
        "Dashed: the target (damoserve:tier_target in rules/slo.yml).",
        "percentunit",
        query(f"1 - {recorded('tier_missed:ratio_rate5m')}", "{{tier}}"),
        query(TARGET, "{{tier}} target"),
    ).max(1)
    misses = parts.stacked(
        "What was missed",
        "late: answered after the objective. refused, expired: too much load, or deadlines too near. failed: a fault.",
        "reqps",
        query(rate("damoserve_requests_total", TIER, MISSED, by="outcome"), "{{outcome}}"),
    )
    tails = graph(
        "p99 against the objective",
        "Of what was answered. A p99 below the dashed line with a low attainment: requests are refused or expire.",
        "s",
        query(quantile(0.99, REQUEST_SECONDS, TIER, by="tier"), "{{tier}} p99"),
        query(OBJECTIVE, "{{tier}} objective"),
    )
    return parts.dashed(reached, "target$"), misses, parts.dashed(tails, "objective$")


def traffic() -> tuple[Panel, ...]:
    return (
        graph(
            "Requests that count",
            "All but invalid and cancelled ones, and those of them that missed. Few requests make burn rates jump.",
            "reqps",
            query(f"sum by (tier) (damoserve:tier_requests:rate5m{{{TIER}}})", "{{tier}}"),
            query(f"sum by (tier) (damoserve:tier_missed:rate5m{{{TIER}}})", "{{tier}} missed"),
        ),
    )


def board() -> Board:
    return Board(
        "slo",
        "damoserve / SLO",
        "Attainment of the tiers' objectives, burn rates, budget left. Over all instances of a job.",
        ("instance", "tier"),
        (Row("", current(), 5), Row("Burn", burns(), 9), Row("Attainment", attainment()), Row("Traffic", traffic(), 7)),
    )
