"""What is written in deploy/, the Dockerfile and two pages of docs/, against the server that it is about."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from damoserve_server.access.tokens import read_tokens
from damoserve_server.app import LAST_ANSWERS_SECONDS
from damoserve_server.configuration.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy/observability"
SETTINGS_PAGE = (ROOT / "docs/settings.md").read_text()
SECURITY_PAGE = (ROOT / "docs/security.md").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
PROMETHEUS = DEPLOY / "prometheus/prometheus.yml"
ALERTMANAGER = DEPLOY / "alertmanager/alertmanager.yml"


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


def test_prometheus_finds_the_rules_and_keeps_what_they_look_back_on() -> None:
    (pattern,) = yaml.safe_load(PROMETHEUS.read_text())["rule_files"]
    assert list(PROMETHEUS.parent.glob(pattern))
    assert "./prometheus/rules:/etc/prometheus/rules:ro" in COMPOSE["services"]["prometheus"]["volumes"]
    command = " ".join(COMPOSE["services"]["prometheus"]["command"])
    kept = re.search(r"retention\.time=(\d+)d", command)
    assert kept is not None
    looked = re.findall(r"\[(\d+)d\]", "".join(path.read_text() for path in PROMETHEUS.parent.glob(pattern)))
    assert int(kept[1]) > max(int(days) for days in looked)


def test_prometheus_keeps_the_exemplars_that_the_page_on_traces_asks_for() -> None:
    (feature,) = re.findall(r"`(--enable-feature=exemplar-storage)`", (ROOT / "docs/tracing.md").read_text())
    assert feature in COMPOSE["services"]["prometheus"]["command"]


def test_prometheus_tells_the_alertmanager() -> None:
    service = COMPOSE["services"]["alertmanager"]
    (told,) = yaml.safe_load(PROMETHEUS.read_text())["alerting"]["alertmanagers"]
    assert told == {"static_configs": [{"targets": [f"alertmanager:{published('alertmanager').pop()}"]}]}
    (read,) = re.findall(r"--config\.file=(\S+)", " ".join(service["command"]))
    assert f"./{ALERTMANAGER.relative_to(DEPLOY)}:{read}:ro" in service["volumes"]


def test_container_is_killed_only_after_the_drain() -> None:
    grace = COMPOSE["services"]["damoserve"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > default("drain_seconds") + LAST_ANSWERS_SECONDS


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
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


def table(page: str) -> list[list[str]]:
    """The cells of the rows that begin with code."""
    rows = [line for line in page.splitlines() if line.startswith("| `")]
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


def test_compose_sets_settings_that_exist() -> None:
    assert COMPOSE["services"]["damoserve"]["environment"].keys() <= dict(defaults(Settings)).keys()


def test_page_has_every_setting_and_its_default() -> None:
    written = {row[0].strip("`"): row[1] for row in table(SETTINGS_PAGE)}
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
    example = re.search(r"A file that sets some of them:\n\n```yaml\n(.+?)```", SETTINGS_PAGE, re.DOTALL)
    assert example is not None
    path = tmp_path / "damoserve.yaml"
    path.write_text(example[1])
    settings = Settings(config=path)
    assert settings.tiers.accurate.accuracy_floor == 0.5
    assert settings.tiers.accurate.objective_ms == default("tiers").accurate.objective_ms


def test_example_tokens_of_the_page_are_valid(tmp_path: Path) -> None:
    example = re.search(r"names a YAML file:\n\n```yaml\n(.+?)```", SECURITY_PAGE, re.DOTALL)
    assert example is not None
    path = tmp_path / "tokens.yaml"
    path.write_text(example[1])
    assert [entry.name for entry in read_tokens(path)] == ["camera-7", "operator"]
