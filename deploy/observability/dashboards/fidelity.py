"""Dashboard of fidelity: the agreement of compressed profiles with the reference profile on today's traffic."""

from deploy.observability.dashboards import parts
from deploy.observability.dashboards.parts import Board, Panel, Row, graph, query
from deploy.observability.dashboards.promql import MODEL, increase, quantile, rate, series, total

BOXES = "damoserve_fidelity_boxes_total"
SHIFT = "damoserve_fidelity_score_shift"
IMAGES = "damoserve_fidelity_images_total"
EXPECTED = "damoserve_fidelity_expected_agreement"
MATCHED = 'result="matched"'
MISSED = 'result=~"missing|extra"'
WINDOW = "10m"
"""The window of agreement, as in the recorded rule and the alert: images are compared too seldom for less."""


def agreement(by: str) -> str:
    """Returns the expression of F1 of the boxes: 2 matched / (2 matched + missing + extra)."""
    matched = f"2 * {increase(BOXES, MODEL, MATCHED, by=by, window=WINDOW)}"
    return f"{matched} / ({matched} + {increase(BOXES, MODEL, MISSED, by=by, window=WINDOW)})"


def agreements() -> tuple[Panel, ...]:
    recorded = f"avg by (model, profile) (damoserve:fidelity_agreement:10m{{{MODEL}}})"
    expected = total(EXPECTED, MODEL, by="model, profile", aggregation="min")
    least = f"min by (model, profile) (min_over_time({series(EXPECTED, MODEL)}[{WINDOW}]))"
    return (
        parts.dashed(
            graph(
                "Agreement by profile, 10 minutes",
                "Boxes that the profile and the reference share, as F1. Dashed: as measured when the profile was "
                "built. Far below: the profile is damaged, or today's images are not like those it was made with. "
                "Look at the classes and at a few images, then roll back or build again with such images.",
                "percentunit",
                query(recorded, "{{model}} {{profile}}"),
                query(expected, "{{model}} {{profile}} expected"),
            ).max(1),
            "expected$",
        ),
        parts.lined(
            graph(
                "Agreement less what was expected",
                "Than the least that was in these 10 minutes. Below the line for a profile with enough images, "
                "the alert fires.",
                "percentunit",
                query(f"{recorded} - on (model, profile) {least}", "{{model}} {{profile}}"),
            ).min(-1),
            (-0.05, parts.RED),
            (0, parts.GREEN),
        ),
    )


def classes() -> tuple[Panel, ...]:
    return (
        graph(
            "Agreement by class, 10 minutes",
            "One class alone that falls: its objects look different than they did, or its scores are near the "
            "threshold.",
            "percentunit",
            query(agreement("profile, label"), "{{profile}} {{label}}"),
        ).max(1),
        parts.stacked(
            "Boxes that do not match",
            "missing: only the reference found it; extra: only the profile did.",
            "ops",
            query(rate(BOXES, MODEL, MISSED, by="profile, label, result"), "{{profile}} {{label}} {{result}}"),
        ),
    )


def scores() -> tuple[Panel, ...]:
    quantiles = [
        query(quantile(share, SHIFT, MODEL, by="profile", window=WINDOW), f"{{{{profile}}}} {name}")
        for name, share in (("p50", 0.5), ("p95", 0.95))
    ]
    return (
        graph(
            "Difference of scores, 10 minutes",
            "Of matched boxes. Large though boxes agree: the threshold of this profile may need another value.",
            "short",
            *quantiles,
        ),
        parts.heat(
            "Matched boxes by difference of scores",
            "All profiles.",
            "short",
            query(increase(f"{SHIFT}_bucket", MODEL, by="le")),
        ),
        parts.stacked(
            "Images",
            "compared, or why not. None compared: the server is never idle, and what is above says nothing.",
            "ops",
            query(rate(IMAGES, MODEL, by="result"), "{{result}}"),
        ),
    )


def board() -> Board:
    return Board(
        "fidelity",
        "damoserve / Fidelity",
        "Agreement of each profile with the reference profile, on a sample of the images that are served.",
        ("instance", "model"),
        (Row("Agreement", agreements(), 9), Row("Classes", classes()), Row("Scores and samples", scores())),
    )
