"""Dashboard to start with: rate, errors and duration of requests."""

from deploy.observability.dashboards import parts
from deploy.observability.dashboards.parts import Board, Panel, Row, figure, graph, query
from deploy.observability.dashboards.promql import MODEL, OBJECTIVE, REQUEST_SECONDS, TIER, quantile, rate, total

REQUESTS = "damoserve_requests_total"
OWED = 'outcome=~"in_time|late|refused|expired|failed"'
"""Matches the ends that a caller may hold against the server: all but those that callers cause."""
IN_TIME = 'outcome="in_time"'
HANDLED = "grpc_server_handled_total"
FIRING = 'count(ALERTS{alertname=~"Damoserve.*", alertstate="firing"}) or vector(0)'


def current() -> tuple[Panel, ...]:
    busy = f"{total('damoserve_workers_busy')} / {total('damoserve_workers')}"
    return (
        figure(
            "Answers", "Requests answered in a second.", "reqps", query(rate(f"{REQUEST_SECONDS}_count", MODEL, TIER))
        ),
        figure(
            "In time",
            "Share of the requests that were answered within their tier's objective, of all but invalid and "
            "cancelled ones. Below the target: see SLO for the tier, then Latency for the stage.",
            "percentunit",
            query(f"{rate(REQUESTS, TIER, IN_TIME)} / {rate(REQUESTS, TIER, OWED)}"),
        )
        .max(1)
        .thresholds(parts.levels(parts.RED, (0.95, parts.ORANGE), (0.99, parts.GREEN))),
        figure(
            "p95", "Of all answers, from arrival to answer.", "s", query(quantile(0.95, REQUEST_SECONDS, MODEL, TIER))
        ),
        figure(
            "In flight", "Requests that have no end yet.", "short", query(total("damoserve_requests_in_flight", TIER))
        ),
        figure(
            "Workers busy",
            "Share of the workers that compute now. All day at 100 %: add cores or replicas, or allow quicker "
            "profiles.",
            "percentunit",
            query(busy),
        )
        .max(1)
        .thresholds(parts.levels(parts.GREEN, (0.8, parts.ORANGE), (0.95, parts.RED))),
        figure(
            "Alerts", "Alerts that fire. docs/alerts.md says what to do about each.", "short", query(FIRING)
        ).thresholds(parts.levels(parts.GREEN, (1, parts.RED))),
    )


def rates() -> tuple[Panel, ...]:
    return (
        parts.stacked(
            "Requests by tier",
            "Arrivals that have ended, whatever the end. Tier none: the request named its profile.",
            "reqps",
            query(rate(REQUESTS, TIER, by="tier"), "{{tier}}"),
        ),
        parts.stacked(
            "Answers by profile",
            "Quicker profiles grow when load does: that is the router at work.",
            "reqps",
            query(rate(f"{REQUEST_SECONDS}_count", MODEL, TIER, by="profile"), "{{profile}}"),
        ),
        parts.stacked(
            "Requests by end",
            "late: answered after the objective; refused: not let in; expired: the deadline passed; cancelled: the "
            "caller left; invalid: the caller's fault; failed: the server's. Refused and expired mean too much load, "
            "failed a fault.",
            "reqps",
            query(rate(REQUESTS, TIER, by="outcome"), "{{outcome}}"),
        ),
    )


def errors() -> tuple[Panel, ...]:
    bad = rate(HANDLED, 'grpc_code!="OK"', by="grpc_method, grpc_code")
    ended = rate(HANDLED, by="grpc_method")
    failed_of_tier = rate(REQUESTS, TIER, OWED, 'outcome!~"in_time|late"', by="tier")
    return (
        graph(
            "Error ratio by method and code",
            "Share of the method's calls, whosever fault it was. INVALID_ARGUMENT and CANCELLED come from callers; "
            "INTERNAL is a fault: the log has its request id.",
            "percentunit",
            query(f"{bad} / on (grpc_method) group_left () {ended} > 0", "{{grpc_method}} {{grpc_code}}"),
        ),
        graph(
            "Error ratio by tier",
            "Requests that got no answer though the caller did nothing wrong: refused, expired or failed.",
            "percentunit",
            query(f"{failed_of_tier} / {rate(REQUESTS, TIER, OWED, by='tier')}", "{{tier}}"),
        ),
        graph(
            "Failures by reason",
            "The reasons are those of the table in detection.proto, which says what each means.",
            "reqps",
            query(f"{rate('damoserve_refused_total', by='reason')} > 0", "{{reason}}"),
        ),
    )


def durations(label: str) -> tuple[Panel, ...]:
    """Returns the quantiles by `label`; those of tiers beside their objectives."""
    panels = []
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        queries = [query(quantile(share, REQUEST_SECONDS, MODEL, TIER, by=label), f"{{{{{label}}}}}")]
        text = "From the arrival of a request to its answer; what got no answer is not in it."
        if label == "tier":
            queries.append(query(OBJECTIVE, "{{tier}} objective"))
            text += " Dashed: the objectives. A tier above its line is late; see Latency for the stage that takes it."
        panels.append(parts.dashed(graph(f"{name} by {label}", text, "s", *queries), "objective$"))
    return tuple(panels)


def calls() -> tuple[Panel, ...]:
    return (
        graph(
            "Calls started and ended",
            "Of every gRPC method, streams and health checks too. Started but not ended: they are open.",
            "reqps",
            query(f"{rate('grpc_server_started_total', by='grpc_method')} > 0", "{{grpc_method}} started"),
            query(f"{rate(HANDLED, by='grpc_method')} > 0", "{{grpc_method}} ended"),
        ),
        graph(
            "p99 of a call",
            "Whatever its end; a stream takes as long as it is open.",
            "s",
            query(quantile(0.99, "grpc_server_handling_seconds", by="grpc_method"), "{{grpc_method}}"),
        ),
        graph(
            "Messages",
            "Of streams more than calls.",
            "reqps",
            query(f"{rate('grpc_server_msg_received_total', by='grpc_method')} > 0", "{{grpc_method}} received"),
            query(f"{rate('grpc_server_msg_sent_total', by='grpc_method')} > 0", "{{grpc_method}} sent"),
        ),
        parts.stacked(
            "Frames of streams",
            "dropped_server_behind: more frames than the server can do; dropped_client_behind: the caller reads too "
            "slowly. See docs/streaming.md.",
            "reqps",
            query(rate("damoserve_stream_frames_total", by="outcome"), "{{outcome}}"),
        ),
    )


def board() -> Board:
    return Board(
        "overview",
        "damoserve / Overview",
        "Rate, errors and duration by tier and profile. Start here; the links lead to the rest.",
        ("instance", "model", "tier"),
        (
            Row("", current(), 4),
            Row("Rate", rates()),
            Row("Errors", errors()),
            Row("Duration by tier", durations("tier")),
            Row("Duration by profile", durations("profile")),
            Row("Calls of any kind", calls()),
        ),
    )
