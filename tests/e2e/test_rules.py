"""Prometheus' rules and Alertmanager's routes, by their own tools; and that each alert is tested and explained."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.expressions import PROMETHEUS, ROOT, alerts, asked_by_panels, filled_in, rules
from tests.support.prometheus import ALERTMANAGER, program

RUNBOOK = (ROOT / "docs/alerts.md").read_text()
SCENARIOS = sorted((PROMETHEUS / "tests").glob("*.yml"))
NAMES = [alert.where for alert in alerts()]


def tool(name: str, *arguments: str | Path) -> str:
    """What promtool or amtool says; fails if it finds a fault."""
    done = subprocess.run([program(name), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def promtool(*arguments: str | Path) -> str:
    return tool("promtool", *arguments)


def test_promtool_accepts_configuration_and_rules() -> None:
    assert f"{len(list((PROMETHEUS / 'rules').iterdir()))} rule files found" in promtool(
        "check", "config", PROMETHEUS / "prometheus.yml"
    )


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.name)
def test_promtool_passes_the_scenarios(path: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", path)


def test_promtool_accepts_the_expressions_of_the_dashboards(tmp_path: Path) -> None:
    asked = [filled_in(one.expression, "1m") for one in asked_by_panels()]
    recorded = [{"record": f"expression:{number}", "expr": text} for number, text in enumerate(asked)]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": recorded}]}))
    assert f"{len(asked)} rules found" in promtool("check", "rules", path)


def test_amtool_accepts_the_configuration() -> None:
    assert "SUCCESS" in tool("amtool", "check-config", ALERTMANAGER)


@pytest.mark.parametrize(("severity", "receiver"), [("page", "pages"), ("ticket", "tickets")])
def test_amtool_finds_a_receiver_for_each_severity(severity: str, receiver: str) -> None:
    route = ["config", "routes", "test", f"--config.file={ALERTMANAGER}", f"severity={severity}"]
    assert tool("amtool", *route).split() == [receiver]


def test_what_one_alert_keeps_quiet_are_alerts() -> None:
    inhibited = yaml.safe_load(ALERTMANAGER.read_text())["inhibit_rules"]
    matchers = [rule[side] for rule in inhibited for side in ("source_matchers", "target_matchers")]
    assert {alert_of(matcher) for (matcher,) in matchers} <= set(NAMES)


def alert_of(matcher: str) -> str:
    named = re.fullmatch(r'alertname = "(\w+)"', matcher)
    assert named, matcher
    return named[1]


def scenarios_of(alert: str) -> list[dict[str, Any]]:
    """The tests in which it fires."""
    every = [test for path in SCENARIOS for test in yaml.safe_load(path.read_text())["tests"]]
    return [test for test in every if any(f'"{alert}"' in sample["labels"] for sample in fired(test))]


def fired(test: dict[str, Any]) -> list[dict[str, Any]]:
    return [sample for asked in test["promql_expr_test"] for sample in asked["exp_samples"]]


@pytest.mark.parametrize("alert", NAMES)
def test_a_scenario_has_the_alert_silent_and_then_firing(alert: str) -> None:
    (scenario,) = scenarios_of(alert)
    first, *_ = scenario["promql_expr_test"]
    assert "ALERTS" in first["expr"]
    assert first["exp_samples"] == []


@pytest.mark.parametrize("rule", [rule for rule in rules() if "alert" in rule], ids=lambda rule: str(rule["alert"]))
def test_alerts_say_what_they_mean_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"].endswith(".")
    assert rule["annotations"]["runbook"] == f"docs/alerts.md#{rule['alert'].lower()}"
    section = RUNBOOK.split(f"\n## {rule['alert']}\n", 1)[1].split("\n## ", 1)[0]
    assert "**Means**" in section
    assert "**Do**" in section


def test_the_page_explains_no_alert_that_is_not_there() -> None:
    assert sorted(re.findall(r"^## (Damoserve\w+)$", RUNBOOK, re.MULTILINE)) == sorted(NAMES)
