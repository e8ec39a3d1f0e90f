"""The real Prometheus and Alertmanager, with the configurations of deploy/observability."""

import json
import math
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.expressions import OBSERVABILITY, PROMETHEUS
from tests.support.timeouts import PROCESS_TIMEOUT

LISTENING = re.compile(r'msg="Listening on" .*?\baddress=(\S+)')
READY = "Server is ready to receive web requests"
ALERTMANAGER = OBSERVABILITY / "alertmanager/alertmanager.yml"
DEBIAN = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
}
"""The packages that have these programs."""


def program(name: str) -> str:
    """The path of one of these programs; skips the test where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian's package is {DEBIAN[name]})")
    return found


class Prometheus:
    """Its HTTP interface."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, path: str, **parameters: object) -> Any:
        """The data of an answer. Raises AssertionError for an expression that it refuses."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=PROCESS_TIMEOUT) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {json.load(error)['error']}") from error

    def now(self, expression: str) -> dict[tuple[tuple[str, str], ...], float]:
        """The values by labels."""
        result = self.ask("query", query=expression)["result"]
        return {tuple(sorted(series["metric"].items())): float(series["value"][1]) for series in result}

    def has_data(self, expression: str, start: float, end: float) -> bool:
        """Whether the expression has a value that is a number at some second of that time."""
        # The last step lies up to a second before the end.
        result = self.ask("query_range", query=expression, start=start, end=end + 1, step=1)["result"]
        return any(math.isfinite(float(value)) for series in result for _, value in series["values"])


def until(condition: Callable[[], object], seconds: float = PROCESS_TIMEOUT, every: float = 0.05) -> None:
    """Raises AssertionError if the condition does not hold in time; `every` so many seconds it is asked for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "that did not happen in time"
        time.sleep(every)


@dataclass(frozen=True)
class Watching:
    """How often Prometheus scrapes `target`, HOST:PORT, and evaluates its rules, and which Alertmanager it tells."""

    target: str
    scrape: str
    evaluation: str
    alertmanager: str | None = None


@contextmanager
def run_prometheus(watching: Watching, folder: Path) -> Iterator[Prometheus]:
    """With the features that the committed container has; keeps its data in the folder."""
    command = [program("prometheus"), "--web.listen-address=127.0.0.1:0", f"--storage.tsdb.path={folder / 'data'}"]
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(configuration(watching)))
    with listening([*command, *features(), f"--config.file={config}"], folder / "log", READY) as address:
        yield Prometheus(address)


@contextmanager
def run_alertmanager(folder: Path) -> Iterator[str]:
    """The address of one with the committed configuration; keeps its data in the folder."""
    command = [program("prometheus-alertmanager"), f"--config.file={ALERTMANAGER}", f"--storage.path={folder / 'data'}"]
    alone = ["--web.listen-address=127.0.0.1:0", "--cluster.listen-address="]
    with listening([*command, *alone], folder / "log") as address:
        yield address


@contextmanager
def listening(command: list[str], log: Path, ready: str = "") -> Iterator[str]:
    """Runs a program until its log names an address and has the words; then gives the address."""
    with log.open("w") as written, subprocess.Popen(command, stderr=written) as process:
        try:
            until(lambda: ready in log.read_text() and LISTENING.search(log.read_text()))
            yield LISTENING.findall(log.read_text())[0]
        finally:
            process.kill()


def told(alertmanager: str) -> dict[str, set[str]]:
    """The alerts that fire, as the Alertmanager knows them, and the receivers of each."""
    with urllib.request.urlopen(f"http://{alertmanager}/api/v2/alerts", timeout=PROCESS_TIMEOUT) as answer:
        known = json.load(answer)
    return {alert["labels"]["alertname"]: {receiver["name"] for receiver in alert["receivers"]} for alert in known}


def features() -> list[str]:
    """What the committed container turns on."""
    services = yaml.safe_load((OBSERVABILITY / "compose.yaml").read_text())["services"]
    return [option for option in services["prometheus"]["command"] if option.startswith("--enable-feature")]


def committed_intervals() -> tuple[str, str]:
    """How often the committed configuration scrapes, and evaluates rules."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]
    return config["scrape_interval"], config["evaluation_interval"]


def configuration(watching: Watching) -> dict[str, Any]:
    """The committed configuration, for another target, other times and another Alertmanager."""
    config: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    times = {"scrape_timeout": watching.scrape, "evaluation_interval": watching.evaluation}
    config["global"] = {"scrape_interval": watching.scrape, **times}
    config["rule_files"] = [str(PROMETHEUS / pattern) for pattern in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [watching.target]}]
    (alertmanagers,) = config["alerting"]["alertmanagers"]
    alertmanagers["static_configs"] = [{"targets": [watching.alertmanager] if watching.alertmanager else []}]
    return config
