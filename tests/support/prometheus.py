"""The real Prometheus, with the configuration of deploy/observability."""

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
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.expressions import PROMETHEUS
from tests.support.timeouts import PROCESS_TIMEOUT

LISTENING = re.compile(r'msg="Listening on" .*?\baddress=(\S+)')
READY = "Server is ready to receive web requests"


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`; skips the test where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian's package is prometheus)")
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


@contextmanager
def run_prometheus(target: str, folder: Path, scrape: str, evaluation: str) -> Iterator[Prometheus]:
    """Scrapes `target`, HOST:PORT, that often, and evaluates the rules that often; keeps its data in the folder."""
    command = [program("prometheus"), "--web.listen-address=127.0.0.1:0", f"--storage.tsdb.path={folder / 'data'}"]
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(configuration(target, scrape, evaluation)))
    log = folder / "log"
    with log.open("w") as written, subprocess.Popen([*command, f"--config.file={config}"], stderr=written) as process:
        try:
            until(lambda: READY in log.read_text())
            yield Prometheus(LISTENING.findall(log.read_text())[0])
        finally:
            process.kill()


def committed_intervals() -> tuple[str, str]:
    """How often the committed configuration scrapes, and evaluates rules."""
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]
    return config["scrape_interval"], config["evaluation_interval"]


def configuration(target: str, scrape: str, evaluation: str) -> dict[str, Any]:
    """The committed configuration, for another target and other times."""
    config: dict[str, Any] = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": scrape, "scrape_timeout": scrape, "evaluation_interval": evaluation}
    config["rule_files"] = [str(PROMETHEUS / pattern) for pattern in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    return config
