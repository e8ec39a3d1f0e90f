"""Dashboard of latency: the time of a request in each stage."""

from deploy.observability.dashboards import parts
from deploy.observability.dashboards.parts import Board, Panel, Query, Row, graph, query
from deploy.observability.dashboards.promql import MODEL, PROFILE, TIER, increase, mean, quantile, rate

STAGES = ("decode_wait", "decode", "queue", "batch_wait", "inference", "postprocess", "respond")
"""The stages as they follow one another; a request's time is their sum."""
SECONDS = "damoserve_stage_seconds"
WHAT_TO_DO = (
    "decode_wait: images wait for a thread to decode them, so they are too large or too many. queue: all workers are "
    "busy; add cores or replicas. batch_wait: a worker waits to fill a batch (DAMOSERVE_MAX_BATCH_WAIT_MS). "
    "inference: the network itself. respond: the process has no time to hand answers over."
)


def stage_means() -> list[Query]:
    """Returns the mean time of each stage."""
    return [query(mean(SECONDS, MODEL, PROFILE, f'stage="{stage}"'), stage) for stage in STAGES]


def together() -> tuple[Panel, ...]:
    whole = query(mean("damoserve_request_seconds", MODEL, PROFILE), "whole request")
    text = f"The stages add up to the dashed line. {WHAT_TO_DO}"
    panel = parts.dashed(parts.stacked("Mean time by stage", text, "s", *stage_means(), whole), "^whole")
    share = parts.shares(
        "Share of each stage",
        "Of all the time that answered requests spent here.",
        *(query(rate(f"{SECONDS}_sum", MODEL, PROFILE, f'stage="{stage}"'), stage) for stage in STAGES),
    )
    return panel, share


def tails() -> tuple[Panel, ...]:
    return tuple(
        graph(f"{name} by stage", text, "s", query(quantile(share, SECONDS, MODEL, PROFILE, by="stage"), "{{stage}}"))
        for name, share, text in (
            ("p50", 0.5, "The usual request."),
            ("p99", 0.99, f"The slowest of a hundred. Quantiles of stages do not add up. {WHAT_TO_DO}"),
        )
    )


def spread() -> tuple[Panel, ...]:
    whole = increase("damoserve_request_seconds_bucket", MODEL, PROFILE, TIER, by="le")
    waits = increase(f"{SECONDS}_bucket", MODEL, PROFILE, 'stage="queue"', by="le")
    return (
        parts.heat(
            "Requests by their time",
            "Two bands: two profiles, or hits and misses of a batch. A band that climbs: a queue that grows.",
            "s",
            query(whole),
        ),
        parts.heat("Requests by their time in the queue", "Decoded, but no worker was free.", "s", query(waits)),
    )


def board() -> Board:
    by_profile = parts.stacked("$profile", f"Mean time of each stage. {WHAT_TO_DO}", "s", *stage_means())
    return Board(
        "latency",
        "damoserve / Latency",
        "Which stage takes the time, for all and for each profile. Stages are not known by tier: it chooses only among "
        "the requests by their time.",
        ("instance", "model", "profile", "tier"),
        (
            Row("All profiles", together(), 9),
            Row("Each profile", (by_profile.repeat("profile").repeat_direction("h").max_per_row(4),)),
            Row("Tails", tails()),
            Row("Spread", spread()),
        ),
    )
