"""Dashboard of routing: the profiles that serve each tier, and how accurate they are."""

from deploy.observability.dashboards import parts
from deploy.observability.dashboards.parts import Board, Panel, Row, graph, query, query_now
from deploy.observability.dashboards.promql import MODEL, TIER, mean, rate, total

ROUTED = "damoserve_routed_total"
FLOOR = "damoserve_tier_accuracy_floor"
QUICKEST = 'reason="quickest"'


def accuracy() -> tuple[Panel, ...]:
    served = graph(
        "Mean served accuracy by tier",
        "Average precision, 0 to 1, of the profiles that served. Dashed: the floors. It falls when load forces "
        "quicker profiles that are less accurate; if it stays low, add capacity.",
        "percentunit",
        query(mean("damoserve_served_accuracy", MODEL, TIER, by="tier"), "{{tier}}"),
        query(total(FLOOR, TIER, by="tier", aggregation="max"), "{{tier}} floor"),
    )
    offered = parts.bars(
        "Accuracy of the profiles",
        "Average precision by their manifests: what the router has to choose from.",
        "percentunit",
        query_now(
            total("damoserve_profile_accuracy", MODEL, by="model, profile", aggregation="max"), "{{model}} {{profile}}"
        ),
    )
    return parts.dashed(served, "floor$"), offered.max(1)


def downgrades() -> tuple[Panel, ...]:
    by_tier = f"{rate(ROUTED, MODEL, TIER, QUICKEST, by='tier')} / {rate(ROUTED, MODEL, TIER, by='tier')}"
    return (
        parts.lined(
            graph(
                "Choices that miss the objective, by tier",
                "Share of the choices for which no profile was expected to meet the objective, so the quickest "
                "served. More than the line for long: the objective is too short for this machine, or the load too "
                "high for it.",
                "percentunit",
                query(by_tier, "{{tier}}"),
            ).max(1),
            (0.05, parts.RED),
        ),
        parts.stacked(
            "Why the profile was chosen",
            "requested: by name; most_accurate_in_time: as it should be; quickest: none was expected in time.",
            "reqps",
            query(rate(ROUTED, MODEL, TIER, by="reason"), "{{reason}}"),
        ),
    )


def board() -> Board:
    of_tier = parts.shares(
        "$tier",
        "Share of the tier's answers by profile. Tier none: the requests named their profile.",
        query(rate(ROUTED, MODEL, TIER, by="profile"), "{{profile}}"),
    )
    return Board(
        "routing",
        "damoserve / Routing and accuracy",
        "Which profile serves which tier, how often none is quick enough, and how accurate what is served is.",
        ("instance", "model", "tier"),
        (
            Row("Accuracy", accuracy()),
            Row("Profiles of each tier", (of_tier.repeat("tier").repeat_direction("h").max_per_row(4),)),
            Row("Downgrades", downgrades()),
        ),
    )
