"""What is written in deploy/, the Dockerfile and docs/operations.md, against the server that it is about."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample
from pydantic import BaseModel

from damoserve_server.access.tokens import read_tokens
from damoserve_server.app import LAST_ANSWERS_SECONDS
from damoserve_server.metrics.reference import populated
from damoserve_server.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
OPERATIONS = (ROOT / "docs/operations.md").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/damoserve.json").read_text())
PROMETHEUS = DEPLOY / "prometheus/prometheus.yml"

PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
TARGETS: list[dict[str, Any]] = [target for panel in PANELS for target in panel.get("targets", [])]
VARIABLES = [variable for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
EXPRESSIONS = [target["expr"] for target in TARGETS] + re.findall(r"```promql\n(.+?)\n```", OPERATIONS, re.DOTALL)

GROUPING = re.compile(r"\b(?:by|on|ignoring|without|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"\b((?:damoserve|grpc_server|process|python)_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
CLOSING = {")": "(", "]": "[", "}": "{"}


@pytest.fixture(scope="module")
def registry() -> CollectorRegistry:
    """Everything that a server with one profile shows."""
    return populated()


@pytest.fixture(scope="module")
def samples(registry: CollectorRegistry) -> list[Sample]:
    return [sample for family in registry.collect() for sample in family.samples]


def matches(value: str, operator: str, wanted: str) -> bool:
    pattern = re.sub(r"\$\w+", ".*", wanted)  # a variable of the dashboard: any value
    found = re.fullmatch(pattern, value) is not None if "~" in operator else value == wanted
    return found != operator.startswith("!")


def select(name: str, matchers: str, samples: list[Sample]) -> list[Sample]:
    wanted = MATCHER.findall(matchers)
    assert MATCHER.sub("", matchers).strip(" ,") == "", f"cannot read {{{matchers}}}"
    return [
        sample
        for sample in samples
        if sample.name == name and all(matches(sample.labels.get(label, ""), op, to) for label, op, to in wanted)
    ]


def selectors(expression: str) -> list[tuple[str, str]]:
    return SELECTOR.findall(GROUPING.sub("", expression))


def groupings(expression: str) -> set[str]:
    return {label.strip() for labels in GROUPING.findall(expression) for label in labels.split(",") if label.strip()}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions_find_series_of_the_server(expression: str, samples: list[Sample]) -> None:
    assert selectors(expression)
    for name, matchers in selectors(expression):
        found = select(name, matchers, samples)
        assert found, f"no series is {name}{{{matchers}}}"
        assert groupings(expression) <= set(found[0].labels)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target["legendFormat"]))
def test_legends_name_labels_that_the_result_has(target: dict[str, Any], samples: list[Sample]) -> None:
    named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
    name, matchers = selectors(target["expr"])[0]
    aggregated = re.search(r"\b(sum|histogram_quantile)\b", target["expr"])
    assert named <= (groupings(target["expr"]) if aggregated else set(select(name, matchers, samples)[0].labels))


@pytest.mark.parametrize("variable", VARIABLES, ids=lambda variable: str(variable["name"]))
def test_variables_find_labels_of_the_server(variable: dict[str, Any], samples: list[Sample]) -> None:
    asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
    assert asked is not None
    ((name, matchers),) = selectors(asked[1])
    assert all(asked[2] in sample.labels for sample in select(name, matchers, samples))
    assert select(name, matchers, samples)


def test_variables_in_use_are_defined() -> None:
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(PANELS)))
    defined = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert used - {"__rate_interval"} == defined


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_brackets_are_balanced(expression: str) -> None:
    opened: list[str] = []
    for character in re.sub(r'"[^"]*"', "", expression):
        if character in CLOSING.values():
            opened.append(character)
        elif character in CLOSING:
            assert opened, f"nothing to close with {character}"
            assert opened.pop() == CLOSING[character]
    assert not opened
    assert expression.count('"') % 2 == 0


def test_panels_have_their_own_ids_and_places() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    taken: dict[tuple[int, int], str] = {}
    for panel in PANELS:
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        assert x >= 0
        assert x + w <= 24
        for cell in ((column, row) for column in range(x, x + w) for row in range(y, y + h)):
            assert cell not in taken, f"{panel['title']} lies over {taken[cell]}"
            taken[cell] = panel["title"]


def published(service: str) -> set[str]:
    """Ports inside the container."""
    return {port.rsplit(":", 1)[1] for port in COMPOSE["services"][service]["ports"]}


def default(setting: str) -> Any:
    return Settings.model_fields[setting].default


def test_ports_are_those_of_the_settings() -> None:
    ports = {str(default("port")), str(default("metrics_port"))}
    assert published("damoserve") == ports
    assert [set(line.split()) for line in re.findall(r"^EXPOSE (.+)$", DOCKERFILE, re.MULTILINE)] == [ports, ports]
    (job,) = yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"damoserve:{default('metrics_port')}"]}]


def test_compose_publishes_to_this_machine_only() -> None:
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_compose_files_exist_and_versions_are_pinned() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
        assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"]), f"{name} is not pinned"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (DEPLOY / source).exists()
    assert re.search(rf"^FROM \S+ AS {COMPOSE['services']['damoserve']['build']['target']}$", DOCKERFILE, re.MULTILINE)


def test_container_is_killed_only_after_the_drain() -> None:
    grace = COMPOSE["services"]["damoserve"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > default("drain_seconds") + LAST_ANSWERS_SECONDS


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    provisioning = DEPLOY / "grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == f"http://prometheus:{published('prometheus').pop()}"
    assert source["jsonData"]["timeInterval"] == yaml.safe_load(PROMETHEUS.read_text())["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/damoserve.yaml").read_text())["providers"]
    folder = provider["options"]["path"]
    assert f"./grafana/dashboards:{folder}:ro" in COMPOSE["services"]["grafana"]["volumes"]
    home = COMPOSE["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DEPLOY / "grafana/dashboards" / Path(home).relative_to(folder)).is_file()


def stages() -> dict[str, str]:
    """The instructions of each stage of the Dockerfile."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("target", ["server", "gpu"])
def test_images_set_settings_that_exist(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict(re.findall(r"\b(DAMOSERVE_\w+)=('[^']*'|\S+)", stages()[target]))
    assert all(name.removeprefix("DAMOSERVE_").lower() in Settings.model_fields for name in given)
    for name, value in given.items():
        monkeypatch.setenv(name, value.strip("'"))
    settings = Settings()
    assert (settings.host, settings.metrics_host) == ("0.0.0.0", "0.0.0.0")


@pytest.mark.parametrize("target", ["server", "gpu", "compress"])
def test_images_do_not_run_as_root(target: str) -> None:
    assert re.findall(r"^USER (.+)$", stages()[target], re.MULTILINE) == ["10001"]


def test_images_copy_what_exists() -> None:
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        assert [source for source in line.split()[:-1] if not (ROOT / source).exists()] == []


def table(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading of the operator's page."""
    lines = OPERATIONS.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0].splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


COMPUTED = {"DAMOSERVE_REPOSITORY": "the bundled model"}


def defaults(model: BaseModel | type[BaseModel], prefix: str = "DAMOSERVE_") -> Iterator[tuple[str, Any]]:
    """The variable and the default of each setting."""
    for name, field in (model if isinstance(model, type) else type(model)).model_fields.items():
        variable = prefix + name.upper()
        value = getattr(model, name) if not isinstance(model, type) else None if field.is_required() else field.default
        optional = [
            kind for kind in get_args(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if isinstance(value, BaseModel) or optional:
            yield from defaults(value or optional[0], f"{variable}__")
        else:
            yield variable, value


def test_page_has_every_setting_and_its_default() -> None:
    written = {row[0].strip("`"): row[1] for row in table("Settings")}
    expected = dict(defaults(Settings))
    assert written.keys() == expected.keys()
    for name, value in expected.items():
        if name in COMPUTED or value is None:
            assert written[name] == COMPUTED.get(name, "unset")
            continue
        text = written[name].strip("`")
        plain = list(value) if isinstance(value, tuple) else value
        assert text == plain if isinstance(plain, str) else json.loads(text) == plain, name


def test_example_file_of_the_page_is_valid(tmp_path: Path) -> None:
    example = re.search(r"A file that sets some of them:\n\n```yaml\n(.+?)```", OPERATIONS, re.DOTALL)
    assert example is not None
    path = tmp_path / "damoserve.yaml"
    path.write_text(example[1])
    settings = Settings(config=path)
    assert settings.tiers.accurate.accuracy_floor == 0.5
    assert settings.tiers.accurate.objective_ms == default("tiers").accurate.objective_ms


def test_example_tokens_of_the_page_are_valid(tmp_path: Path) -> None:
    example = re.search(r"names a YAML file:\n\n```yaml\n(.+?)```", OPERATIONS, re.DOTALL)
    assert example is not None
    path = tmp_path / "tokens.yaml"
    path.write_text(example[1])
    assert [entry.name for entry in read_tokens(path)] == ["camera-7", "operator"]


def promtool(*arguments: str | Path) -> str:
    """What promtool says; fails if it finds a fault."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian's package is prometheus)")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_configuration() -> None:
    assert "SUCCESS" in promtool("check", "config", PROMETHEUS)


def test_promtool_accepts_the_expressions(tmp_path: Path) -> None:
    plain = [re.sub(r"\$\w+", ".*", text.replace("$__rate_interval", "1m")) for text in EXPRESSIONS]
    rules = [{"record": f"expression:{number}", "expr": text} for number, text in enumerate(plain)]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", path)
