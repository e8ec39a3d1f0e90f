"""The dashboards as they are committed: what the code makes, whole, and understandable."""

import json
import re
from typing import Any

import pytest
from deploy.observability import dashboards
from prometheus_client.metrics_core import Metric

from damoserve_server.metrics.reference import populated
from tests.support.expressions import DASHBOARDS, asked_by_panels, boards, panels

BOARDS = boards()
EVERY_PANEL = [(name, panel) for name, board in BOARDS.items() for panel in panels(board)]
OWN_VARIABLES = {"__rate_interval"}
WANTED = re.compile(r"(objective|floor|target|expected)$|^(high water|whole)")
UNITS = {"short", "s", "bytes", "reqps", "ops", "percentunit"}
CLOSING = {")": "(", "]": "[", "}": "{"}


@pytest.fixture(params=BOARDS)
def board(request: pytest.FixtureRequest) -> dict[str, Any]:
    return BOARDS[request.param]


@pytest.fixture(params=EVERY_PANEL, ids=lambda named: f"{named[0]}: {named[1]['title']}")
def panel(request: pytest.FixtureRequest) -> dict[str, Any]:
    panel: dict[str, Any] = request.param[1]
    return panel


def test_committed_files_are_those_that_the_code_makes() -> None:
    committed = {path.name: path.read_text() for path in DASHBOARDS.iterdir()}
    assert committed == dashboards.files(), "make dashboards writes them anew"


def test_variables_in_use_are_defined(board: dict[str, Any]) -> None:
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board["panels"])))
    defined = {variable["name"] for variable in board["templating"]["list"]}
    assert used - OWN_VARIABLES == defined


@pytest.fixture(scope="module")
def exposed() -> list[Metric]:
    """What a server shows."""
    return list(populated().collect())


def test_variables_ask_for_labels_that_the_server_has(board: dict[str, Any], exposed: list[Metric]) -> None:
    asked = [variable["query"]["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    for metric, label in (re.findall(r"^label_values\((\w+).*, (\w+)\)$", query)[0] for query in asked):
        (family,) = (family for family in exposed if family.name == metric)
        assert label == "instance" or label in family.samples[0].labels


def test_every_metric_of_the_server_is_shown(exposed: list[Metric]) -> None:
    names = {name for asked in asked_by_panels() for name in asked.metrics()}
    shown = {re.sub("_(total|bucket|sum|count)$", "", name) for name in names}
    assert {family.name for family in exposed if not family.name.startswith("python_")} - shown == set()


def test_boards_are_linked_and_keep_what_was_chosen(board: dict[str, Any]) -> None:
    (link,) = board["links"]
    assert all(set(link["tags"]) <= set(other["tags"]) for other in BOARDS.values())
    assert link["includeVars"]
    assert link["keepTime"]


def test_boards_have_names_of_their_own() -> None:
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS)
    assert len({board["title"] for board in BOARDS.values()}) == len(BOARDS)


def test_panels_have_their_own_ids_and_places(board: dict[str, Any]) -> None:
    shown = panels(board)
    assert len({panel["id"] for panel in shown}) == len(shown)
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        x, y, w, h = (panel["gridPos"].get(key, 0) for key in "xywh")
        assert x + w <= 24
        for cell in ((column, row) for column in range(x, x + w) for row in range(y, y + h)):
            assert cell not in taken, f"{panel['title']} lies over {taken[cell]}"
            taken[cell] = panel["title"]


def test_panels_say_what_they_show(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    if panel["type"] in {"timeseries", "stat", "bargauge"}:
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_legends_name_labels_that_the_result_has(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        kept = {
            label.strip() for labels in re.findall(r"\bby \(([^)]*)\)", target["expr"]) for label in labels.split(",")
        }
        whole = not re.search(r"\b(sum|max|min|avg|count)\b", target["expr"])
        assert whole or named <= kept


def test_expressions_are_about_the_chosen_instances(panel: dict[str, Any]) -> None:
    """But for what rules record over all of them."""
    for target in panel["targets"]:
        for selected in re.findall(r"\b(?:damoserve|grpc_server|process)_\w+(?:\{[^}]*\})?", target["expr"]):
            assert 'instance=~"$instance"' in selected


def test_what_is_wanted_is_a_dashed_line_beside_what_is(panel: dict[str, Any]) -> None:
    wanted = [target["legendFormat"] for target in panel["targets"] if WANTED.search(target["legendFormat"])]
    dashed = [
        override["matcher"]["options"].strip("/")
        for override in panel.get("fieldConfig", {}).get("overrides", [])
        if any(changed["id"] == "custom.lineStyle" for changed in override["properties"])
    ]
    assert all(any(re.search(pattern, legend) for pattern in dashed) for legend in wanted)


def test_brackets_are_balanced(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        opened: list[str] = []
        for character in re.sub(r'"[^"]*"', "", target["expr"]):
            if character in CLOSING.values():
                opened.append(character)
            elif character in CLOSING:
                assert opened
                assert opened.pop() == CLOSING[character]
        assert not opened
