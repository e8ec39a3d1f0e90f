"""Dashboards of Grafana, a module each. `python -m deploy.observability.dashboards FOLDER` writes them as JSON."""

import json

from deploy.observability.dashboards import (
    batching,
    fidelity,
    latency,
    models,
    overview,
    parts,
    resources,
    routing,
    slo,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder

BOARDS = tuple(module.board() for module in (overview, latency, batching, routing, slo, resources, fidelity, models))


def files() -> dict[str, str]:
    """Returns the name and the content of each file."""
    return {f"{board.name}.json": f"{_json(board)}\n" for board in BOARDS}


def _json(board: parts.Board) -> str:
    return json.dumps(parts.build(board), cls=JSONEncoder, indent=2, sort_keys=True)
