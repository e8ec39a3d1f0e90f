"""Every expression of the dashboards and rules, answered by the real Prometheus that watched a server under load.

`make observability` runs this with a load of 60 seconds instead of the few that are enough for every commit.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks.callers import crops
from benchmarks.serving import copy_bundled, free_port, real_server
from damoserve_client import Client
from damoserve_profiles.manifest import MODEL_FILE
from damoserve_profiles.repository import Repository, describe_file
from tests.support.expressions import (
    FOUND_BY_PROMETHEUS,
    Asked,
    alerts,
    asked_by_panels,
    decided,
    filled_in,
    recordings,
    rules,
)
from tests.support.prometheus import (
    Prometheus,
    Watching,
    committed_intervals,
    program,
    run_alertmanager,
    run_prometheus,
    told,
    until,
)
from tests.support.traffic import MODEL, PROFILES, mixed

LOAD_SECONDS = float(os.environ.get("DAMOSERVE_OBSERVABILITY_SECONDS", "5"))
WINDOW = "4s"
BROKEN = 2
DAMAGED = "pruned"
NOISE = 0.3
FIDELITY_ALERT = 'ALERTS{alertname="DamoserveFidelityDrops", alertstate="firing"}'
FOREIGN = ("scrape_", "ALERTS", "python_")
"""Prometheus' own, and those of the interpreter, which nobody needs to look at."""


@dataclass(frozen=True)
class Watched:
    """A Prometheus, when it watched, and what the callers saw meanwhile."""

    prometheus: Prometheus
    start: float
    end: float
    ends: Counter[str]

    def answers(self, expression: str) -> bool:
        return self.prometheus.has_data(filled_in(expression, WINDOW), self.start, self.end)


def without(asked: list[Asked], answered: Watched) -> list[str]:
    """Those that have no data."""
    return [f"{one.where}: {one.expression}" for one in asked if not answered.answers(one.expression)]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    program("prometheus")  # before a server is started for nothing
    root = copy_bundled(tmp_path_factory.mktemp("repository"))
    settings = {"repository": root, "workers": 1, "threads_per_worker": 1, "max_queue": 8, "fidelity__share": 1}
    with real_server(**settings) as (server, _):
        target, folder = urlsplit(server.metrics).netloc, tmp_path_factory.mktemp("prometheus")
        with run_prometheus(Watching(target, "500ms", "1s"), folder) as prometheus:
            start = time.time()
            until(lambda: prometheus.now("damoserve_workers"))
            add_broken_version(root)
            ends = asyncio.run(mixed(server.address, server.admin, LOAD_SECONDS, BROKEN))
            until(lambda: prometheus.now('ALERTS{alertname="DamoserveReloadRefused", alertstate="firing"}'))
            # Only now is the device idle; and what was kept during the load is gone with the version that was reloaded.
            with quietly(server.address, PROFILES) as turn:
                until(lambda: turn() and prometheus.now("damoserve:fidelity_agreement:10m > 0"), every=0.5)
            yield Watched(prometheus, start, time.time(), ends)


@contextmanager
def quietly(address: str, profiles: Sequence[str]) -> Iterator[Callable[[], bool]]:
    """What is given asks each profile for the next picture."""
    with Client(address) as client:
        pictures = cycle(crops(32))

        def turn() -> bool:
            content = next(pictures)
            return all(client.detect(content, profile=profile).profile == profile for profile in profiles)

        yield turn


def add_broken_version(root: Path) -> None:
    copy_bundled(root, versions=(BROKEN,))
    Repository(root).folder(MODEL, BROKEN, "int8").model_path.write_bytes(b"damaged")


def test_the_load_had_every_end(watched: Watched) -> None:
    counted = watched.prometheus.now("sum by (outcome) (damoserve_requests_total)")
    outcomes = {dict(labels)["outcome"]: value for labels, value in counted.items()}
    expected = {"in_time", "late", "refused", "expired", "cancelled", "invalid"}
    assert expected <= {outcome for outcome, count in outcomes.items() if count}
    assert outcomes["failed"] == 0
    assert {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "FAILED_PRECONDITION"} <= watched.ends.keys()


def test_every_panel_has_data(watched: Watched) -> None:
    assert without(asked_by_panels(), watched) == []


def test_every_recorded_series_has_data(watched: Watched) -> None:
    assert without([Asked(one.where, one.where) for one in recordings()], watched) == []


def test_every_alert_can_be_decided(watched: Watched) -> None:
    assert without([Asked(one.where, decided(one.expression)) for one in alerts()], watched) == []


def test_prometheus_evaluates_every_rule(watched: Watched) -> None:
    found = [rule for group in watched.prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in found} == {rule.get("record") or rule["alert"] for rule in rules()}
    assert [(rule["name"], rule["lastError"]) for rule in found if rule["health"] != "ok"] == []


def test_expressions_name_what_exists_and_panels_name_all_of_it(watched: Watched) -> None:
    names = watched.prometheus.ask("label/__name__/values", start=watched.start, end=watched.end)
    recorded = {one.where for one in recordings()}
    exposed = {metric(name) for name in names if not name.startswith(FOREIGN)} - recorded - FOUND_BY_PROMETHEUS
    shown = metrics(asked_by_panels())
    assert (shown | metrics([*recordings(), *alerts()])) - exposed - recorded - FOUND_BY_PROMETHEUS == set()
    assert exposed - shown == set()


def damage(root: Path, profile: str) -> None:
    """Adds noise to the weights; what is left finds some cells. The manifest vouches for it, without a golden image."""
    folder = Repository(root).folder(MODEL, 1, profile)
    model = onnx.load(folder.model_path)
    chance = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.dtype == np.float32 and weights.ndim == 4:
            noisy = weights * (1 + NOISE * chance.standard_normal(weights.shape, np.float32))
            tensor.CopyFrom(numpy_helper.from_array(noisy, tensor.name))
    onnx.save(model, folder.model_path)
    folder.write(folder.read_manifest().model_copy(update={"files": {MODEL_FILE: describe_file(folder.model_path)}}))


@pytest.mark.skipif(LOAD_SECONDS < 60, reason="takes minutes: make observability")
def test_a_damaged_profile_raises_the_alert_within_two_minutes(tmp_path: Path) -> None:
    profiles = ("fp32", "int8", DAMAGED)
    root = copy_bundled(tmp_path / "repository", profiles=profiles)
    damage(root, DAMAGED)
    settings = {"repository": root, "workers": 1, "threads_per_worker": 1, "fidelity__share": 1}
    with (
        real_server(**settings) as (server, _),
        run_prometheus(Watching(urlsplit(server.metrics).netloc, *committed_intervals()), tmp_path) as prometheus,
        quietly(server.address, profiles) as turn,
    ):
        until(lambda: turn() and prometheus.now(FIDELITY_ALERT), seconds=120, every=1)
        assert {dict(labels)["profile"] for labels in prometheus.now(FIDELITY_ALERT)} == {DAMAGED}


def test_the_alertmanager_is_told_what_fires(tmp_path: Path) -> None:
    root, folder = copy_bundled(tmp_path / "repository", profiles=("int8+pruned",)), tmp_path / "prometheus"
    folder.mkdir()
    with (
        run_alertmanager(tmp_path) as alertmanager,
        real_server(repository=root, workers=1, threads_per_worker=1, watch_seconds=0.5) as (server, _),
        run_prometheus(Watching(urlsplit(server.metrics).netloc, "500ms", "1s", alertmanager), folder) as prometheus,
    ):
        until(lambda: prometheus.now("damoserve_workers"))
        add_broken_version(root)
        until(lambda: told(alertmanager))
        assert told(alertmanager) == {"DamoserveReloadRefused": {"tickets"}}


def test_prometheus_keeps_the_traces_of_requests(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="the extra tracing is not installed")
    # No collector has to be there: the exemplar is written all the same.
    traced = {"tracing__endpoint": f"http://127.0.0.1:{free_port()}", "tracing__sample_ratio": 1}
    with (
        real_server(workers=1, threads_per_worker=1, **traced) as (server, _),
        run_prometheus(Watching(urlsplit(server.metrics).netloc, "500ms", "1s"), tmp_path) as prometheus,
        quietly(server.address, ["int8+pruned"]) as turn,
    ):
        asked = {"query": "damoserve_request_seconds_bucket", "start": time.time(), "end": time.time() + 600}
        until(lambda: turn() and prometheus.ask("query_exemplars", **asked), every=0.5)
        (found, *_) = prometheus.ask("query_exemplars", **asked)
        assert found["exemplars"][0]["labels"].keys() == {"trace_id"}


def metrics(asked: list[Asked]) -> set[str]:
    return {metric(name) for one in asked for name in one.metrics()}


def metric(series: str) -> str:
    """What a series of a histogram or a summary belongs to."""
    return series.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
