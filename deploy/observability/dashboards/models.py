"""Dashboard of models: what is served, the states of profiles, and changes of versions."""

from deploy.observability.dashboards import parts
from deploy.observability.dashboards.parts import Board, Panel, Row, figure, graph, query, query_now
from deploy.observability.dashboards.promql import MODEL, increase, series, total

STATE = "damoserve_profile_state"
STATES = (("failed", parts.RED), ("unloaded", parts.GREY), ("loading", parts.ORANGE), ("active", parts.GREEN))
WHAT_TO_DO = (
    "Failed: ListProfiles (damoserve profiles) says what is wrong. Unloaded: somebody did that (damoserve admin load). "
    "Loading for long: see the log."
)


def matching(state: str) -> str:
    return f'state="{state}"'


def current() -> tuple[Panel, ...]:
    return (
        figure("Active profiles", "Over all instances.", "short", query(total(STATE, MODEL, 'state="active"'))),
        figure(
            "Failed profiles",
            "They are not served. ListProfiles (damoserve profiles) says what is wrong with each.",
            "short",
            query(total(STATE, MODEL, 'state="failed"')),
        ).thresholds(parts.levels(parts.GREEN, (1, parts.RED))),
    )


def states() -> tuple[Panel, ...]:
    numbered = " + ".join(
        f"{value} * {total(STATE, MODEL, matching(name), by='instance, model, profile')}"
        for value, (name, _) in enumerate(STATES)
    )
    return (
        parts.states(
            "State of each profile", WHAT_TO_DO, STATES, query(numbered, "{{instance}} {{model}} {{profile}}")
        ),
        parts.stacked(
            "Profiles by state", "Over all instances.", "short", query(total(STATE, MODEL, by="state"), "{{state}}")
        ),
    )


def changes() -> tuple[Panel, ...]:
    return (
        graph(
            "Attempts to change the version",
            "refused: something was wrong with the new version and the old one serves on; the log says what.",
            "short",
            query(increase("damoserve_reloads_total", MODEL, by="model, result"), "{{model}} {{result}}"),
        ),
        graph(
            "Certificates and tokens read again",
            "refused: the new file cannot be used and the old content holds; a certificate may soon expire.",
            "short",
            query(increase("damoserve_credential_reloads_total", by="file, result"), "{{file}} {{result}}"),
        ),
    )


def tables() -> tuple[Panel, ...]:
    return (
        parts.labels("Profiles", "What is served.", query_now(series("damoserve_profile_info", MODEL))),
        parts.labels("Builds", "What serves.", query_now(series("damoserve_build_info"))),
    )


def board() -> Board:
    return Board(
        "models",
        "damoserve / Models",
        "States of profiles, versions and builds, and how reloads ended.",
        ("instance", "model"),
        (Row("", current(), 4), Row("States", states()), Row("Changes", changes()), Row("What is there", tables(), 9)),
    )
