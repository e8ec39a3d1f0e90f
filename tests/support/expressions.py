"""What dashboards and rules ask Prometheus, as it is committed."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
OBSERVABILITY = ROOT / "deploy/observability"
DASHBOARDS = OBSERVABILITY / "grafana/dashboards"
PROMETHEUS = OBSERVABILITY / "prometheus"
FOUND_BY_PROMETHEUS = {"up", "ALERTS"}

LITERAL = re.compile(r'"[^"]*"')
LABELS = re.compile(r"\{[^}]*\}|\b(?:by|on|ignoring|without|group_left|group_right)\s*\([^)]*\)")
METRIC = re.compile(r"\b(up|ALERTS|(?:damoserve|grpc_server|process|python)[_:][\w:]+)\b")
COMPARISON = re.compile(r" (==|!=|>=|<=|>|<) ")


@dataclass(frozen=True)
class Asked:
    """An expression and where it stands."""

    where: str
    expression: str

    def metrics(self) -> set[str]:
        return set(METRIC.findall(LABELS.sub("", LITERAL.sub("", self.expression))))


def boards() -> dict[str, dict[str, Any]]:
    """The dashboards by the names of their files."""
    return {path.name: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def asked_by_panels() -> list[Asked]:
    return [
        Asked(f"{board['title']} / {panel['title']}", target["expr"])
        for board in boards().values()
        for panel in panels(board)
        for target in panel["targets"]
    ]


def rules() -> Iterator[dict[str, Any]]:
    for path in sorted((PROMETHEUS / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def recordings() -> list[Asked]:
    return [Asked(rule["record"], rule["expr"]) for rule in rules() if "record" in rule]


def alerts() -> list[Asked]:
    return [Asked(rule["alert"], rule["expr"]) for rule in rules() if "alert" in rule]


def filled_in(expression: str, window: str) -> str:
    """As Grafana sends it when everything is chosen in every variable; `window` stands for `$__rate_interval`."""
    return re.sub(r"\$\w+", ".*", expression.replace("$__rate_interval", window))


def decided(expression: str) -> str:
    """The same comparisons, but with the answers 0 and 1 instead of none and the value.

    So an alert has an answer while it is silent, as long as both sides of every comparison and `and` have data, with
    labels that match.
    """
    return COMPARISON.sub(r" \1 bool ", expression)
