"""Rows are written as prometheus_client writes what it collects."""

import asyncio
import gzip
import urllib.request
from collections.abc import Callable, Iterable
from http.client import HTTPMessage

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus
from prometheus_client.samples import Exemplar

from damoserve_server.metrics.exposition import Registry
from damoserve_server.metrics.rows import Histogram
from tests.support.server import Serve

Parse = Callable[[str], Iterable[Metric]]
Encode = Callable[[CollectorRegistry], bytes]
Shown = tuple[str, dict[str, str], float, Exemplar | None]

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
FORMATS: list[tuple[str, Parse, Encode]] = [
    ("text/plain", parse_prometheus, generate_latest),
    (OPENMETRICS, parse_openmetrics, openmetrics.generate_latest),
]
EDGES = (0.1, 1.0)


def families(parse: Parse, text: str) -> list[tuple[str, str, str, list[Shown]]]:
    return sorted(
        (
            family.name,
            family.type,
            family.documentation,
            [(s.name, s.labels, s.value, s.exemplar) for s in family.samples],
        )
        for family in parse(text)
    )


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    Counter("plain", "Of the library.", ["kind"], registry=registry).labels('a "quoted" \\ one').inc()
    histogram = Histogram("took_seconds", "Ours.", ["who"], EDGES)
    registry.register(histogram)
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.labels('a "quoted" \\ one').observe(value)
    histogram.labels("other")
    histogram.labels("traced").observe(0.5, {"trace_id": "4bf92f"})
    return registry


@pytest.mark.parametrize(("accept", "parse", "encode"), FORMATS)
def test_rows_are_written_as_the_library_writes(registry: Registry, accept: str, parse: Parse, encode: Encode) -> None:
    text, content_type = registry.text(accept)
    assert families(parse, text.decode()) == families(parse, encode(registry).decode())
    assert content_type.startswith(accept.split(";", maxsplit=1)[0])


def test_a_row_that_changes_is_written_anew(registry: Registry) -> None:
    gauge = Gauge("depth", "Of the library.", registry=registry)
    histogram = Histogram("size", "Ours.", [], EDGES)
    registry.register(histogram)
    for count in range(1, 4):
        histogram.labels().observe(0.25)
        gauge.set(count)
        for accept, parse, _ in FORMATS:
            found = {s.name: s.value for family in parse(registry.text(accept)[0].decode()) for s in family.samples}
            assert (found["size_count"], found["size_sum"], found["depth"]) == (count, count / 4, count)


def test_values_on_an_edge_are_within_it_as_in_the_library() -> None:
    reference = CollectorRegistry()
    from prometheus_client import Histogram as Theirs

    theirs, ours = Theirs("t", "", registry=reference, buckets=EDGES), Histogram("t", "", [], EDGES)
    for value in (0.0, 0.1, 0.1000001, 1.0, 1.1):
        theirs.observe(value)
        ours.labels().observe(value)
    theirs_found = {(s.name, s.labels.get("le")): s.value for f in reference.collect() for s in f.samples}
    ours_found = {(s.name, s.labels.get("le")): s.value for f in ours.collect() for s in f.samples}
    assert ours_found == {key: value for key, value in theirs_found.items() if not key[0].endswith("_created")}


async def test_the_endpoint_speaks_both_formats_and_compresses(serve: Serve) -> None:
    async with serve() as client:
        url = f"http://127.0.0.1:{client.application.metrics_port}/metrics"

        def ask(query: str = "", **headers: str) -> tuple[HTTPMessage, bytes]:
            request = urllib.request.Request(url + query, headers=headers)
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.headers, response.read()

        plain = await asyncio.to_thread(ask)
        packed = await asyncio.to_thread(ask, **{"Accept-Encoding": "gzip", "Accept": OPENMETRICS})
        one = await asyncio.to_thread(ask, "?name[]=damoserve_requests_in_flight")
    assert plain[0]["Content-Type"].startswith("text/plain")
    assert packed[0]["Content-Type"].startswith("application/openmetrics-text")
    parsed = parse_openmetrics(gzip.decompress(packed[1]).decode())  # type: ignore[no-untyped-call]  # the other has types
    names = {family.name for family in parsed}
    assert names == {family.name for family in parse_prometheus(plain[1].decode())}
    assert [family.name for family in parse_prometheus(one[1].decode())] == ["damoserve_requests_in_flight"]
