"""`damoserve top` without a server: what it reads off scrapes, and how it draws that."""

import gzip
import io
import itertools
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from damoserve_client.cli import app
from damoserve_client.top.graphs import fold, share_out
from damoserve_client.top.quantiles import quantile
from damoserve_client.top.reading import Reading, read
from damoserve_client.top.scrape import NoMetrics, Scrape, parse, scrape
from damoserve_client.top.screen import History, Picture, duration

# What a server of the bundled model told three seconds apart: two clients by tier, one by profile, one with a deadline
# of 20 ms, each with pauses; without what `top` does not read.
SCRAPES = Path(__file__).parent / "scrapes"
EDGES = (0.001, 0.004, 0.01, 0.05, 0.1, 1.0, math.inf)


def reading(before: str, after: str, seconds: float = 3.0) -> Reading:
    return read(Scrape(10.0, parse(before)), Scrape(10.0 + seconds, parse(after)))


@pytest.fixture
def before() -> str:
    return gzip.decompress((SCRAPES / "before.txt.gz").read_bytes()).decode()


@pytest.fixture
def after() -> str:
    return gzip.decompress((SCRAPES / "after.txt.gz").read_bytes()).decode()


def text_of(picture: Picture, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(picture)
    return console.export_text()


@given(
    values=st.lists(st.floats(0.0001, 0.99), min_size=1, max_size=60),
    share=st.sampled_from((0.01, 0.25, 0.5, 0.95, 0.99, 1.0)),
)
def test_a_quantile_lies_in_the_bucket_of_the_one_in_the_sorted_list(values: list[float], share: float) -> None:
    buckets = [(edge, float(sum(value <= edge for value in values))) for edge in EDGES]
    exact = sorted(values)[math.ceil(share * len(values)) - 1]
    upper = next(edge for edge in EDGES if exact <= edge)
    lower = max((edge for edge in EDGES if edge < exact), default=0.0)
    found = quantile(share, buckets)
    assert found is not None
    assert lower <= found <= upper


@given(counts=st.lists(st.integers(0, 20), min_size=len(EDGES), max_size=len(EDGES)))
def test_quantiles_do_not_fall(counts: list[int]) -> None:
    buckets = [(edge, float(sum(counts[: index + 1]))) for index, edge in enumerate(EDGES)]
    found = [quantile(share / 20, buckets) for share in range(1, 21)]
    if not any(counts):
        assert set(found) == {None}
    else:
        numbers = [value for value in found if value is not None]
        assert numbers == sorted(numbers)
        assert len(numbers) == 20


def test_a_quantile_as_prometheus_finds_it() -> None:
    buckets = [(0.1, 2.0), (0.2, 6.0), (math.inf, 10.0)]
    assert quantile(0.4, buckets) == pytest.approx(0.15)
    assert quantile(0.1, buckets) == pytest.approx(0.05)
    assert quantile(0.99, buckets) == 0.2
    assert quantile(0.5, []) is None


@given(values=st.lists(st.floats(0, 1e3), min_size=1, max_size=8), cells=st.integers(1, 200))
def test_a_bar_is_filled(values: list[float], cells: int) -> None:
    shares = share_out(values, cells)
    assert min(shares) >= 0
    assert sum(shares) == (cells if math.fsum(values) else 0)


def test_a_sparkline_folds_from_the_latest() -> None:
    assert fold([1, 2, 3, None, 5], 2) == [1, 3, 5]
    assert fold([None, None, 4.0], 2) == [None, 4.0]
    assert fold([], 3) == []


def test_what_a_server_did_between_two_scrapes(before: str, after: str) -> None:
    found = reading(before, after)
    assert found.rate == pytest.approx(sum(tier.rate for tier in found.tiers))
    assert found.rate == pytest.approx(sum(found.outcomes.values()))
    assert found.outcomes["in_time"] > 0
    assert found.outcomes["refused"] > 0
    assert set(found.refusals) == {"DEADLINE_EXPIRED", "DEADLINE_UNREACHABLE"}
    assert [tier.tier for tier in found.tiers] == ["realtime", "balanced", "accurate", "none"]
    assert [tier.objective for tier in found.tiers] == [0.04, 0.1, 1.0, None]
    assert [profile.profile for profile in found.profiles] == ["int8+pruned", "pruned", "int8", "fp32"]
    assert {profile.state for profile in found.profiles} == {"active"}
    assert sum(profile.rate for profile in found.profiles) == pytest.approx(
        found.outcomes["in_time"] + found.outcomes["late"]
    )
    assert list(found.stages) == ["decode_wait", "decode", "queue", "batch_wait", "inference", "postprocess", "respond"]
    assert known(found.latency.p50) < known(found.latency.p95) <= known(found.latency.p99)
    assert 0.62 < known(found.accuracy) < 0.64
    assert found.process.version == "0.1.0"
    assert found.versions == {"blood-cells": "1"}
    assert 0 < known(found.process.cpu) < 8
    assert known(found.device.workers) >= 1


def known(value: float | None) -> float:
    assert value is not None
    return value


def test_a_quiet_server_has_rates_of_zero_and_no_latencies(after: str) -> None:
    found = reading(after, after)
    assert found.rate == 0
    assert {tier.latency.p99 for tier in found.tiers} == {None}
    assert found.stages == {}
    assert "active" in text_of(Picture("http://x", found))


def test_counters_of_a_restarted_server_start_at_zero(before: str, after: str) -> None:
    restarted = after.replace("process_start_time_seconds 1", "process_start_time_seconds 2")
    since_start = reading("damoserve_workers 1", after)
    assert reading(before, restarted).rate == pytest.approx(since_start.rate)
    # An older server does not say when it started; its counters have fallen.
    old = 'damoserve_request_seconds_count{{model="m",profile="p",tier="none"}} {}\n'
    assert reading(old.format(90), old.format(30)).rate == pytest.approx(10)


def test_agreement_with_the_reference_profile(before: str, after: str) -> None:
    which = 'model="blood-cells",profile="int8"'
    boxes = "".join(
        f'damoserve_fidelity_boxes_total{{{which},label="{label}",result="{result}"}} {count}\n'
        for label in ("RBC", "WBC")
        for result, count in (("matched", 45), ("missing", 4), ("extra", 6))
    )
    expected = f"damoserve_fidelity_expected_agreement{{{which}}} 0.97\n"
    found = reading(before, after.replace("# EOF", "") + boxes + expected)
    int8 = next(profile for profile in found.profiles if profile.profile == "int8")
    assert (int8.agreement, int8.expected_agreement) == (0.9, 0.97)
    assert ".900/.970" in text_of(Picture("http://x", found))


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_picture_fits(before: str, after: str, width: int) -> None:
    found, history = reading(before, after), History(1.0)
    for value in [found, None, *[found] * 70]:
        history.add(value)
    text = text_of(Picture("http://127.0.0.1:9464/metrics", found, history), width)
    lines = text.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= width
    assert "…" not in text
    assert text.count("█" * 50) >= 2  # both sparklines: every value is the highest


@pytest.mark.parametrize("names", [("damoserve_workers",), ("damoserve_profile_state", "damoserve_stage_seconds"), ()])
def test_what_a_server_does_not_tell_is_left_out(before: str, after: str, names: tuple[str, ...]) -> None:
    def only(text: str) -> str:
        lines = [line for line in text.splitlines() if line.startswith(names or "damoserve_workers")]
        return "\n".join(lines) + "\n"

    text = text_of(Picture("http://x", reading(only(before), only(after))))
    assert ("int8+pruned" in text) == ("damoserve_profile_state" in names)
    assert "tier" not in text


def test_names_that_move_the_cursor_are_spelled_out(before: str, after: str) -> None:
    name = "\x1b[2J[red]x[/]"
    first, second = (text.replace('"int8"', f'"{name}"').replace('"realtime"', f'"{name}"') for text in (before, after))
    found = reading(first, second)
    text = text_of(Picture("http://x", found), 200)
    assert text.count(r"\x1b[2J[red]x[/]") == 2  # a tier and a profile
    assert all(line.isprintable() for line in text.splitlines())


def test_durations() -> None:
    assert list(map(duration, (7, 61, 3700, 93_700))) == ["7 s", "1 min 1 s", "1 h 1 min", "1 d 2 h"]


@contextmanager
def answering(content: bytes, status: int = 200, *later: bytes) -> Iterator[str]:
    contents = itertools.chain([content], itertools.cycle(later or (content,)))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(next(contents))

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("content", "status", "complaint"),
    [
        (b"<html>hello</html>", 200, "no metrics"),
        (b"\xff\xfe", 200, "no metrics"),
        (b"up 1\n", 200, "no metrics"),
        (b"", 404, "Not Found"),
    ],
)
def test_what_is_no_server_is_told(content: bytes, status: int, complaint: str) -> None:
    with answering(content, status) as url, pytest.raises(NoMetrics, match=complaint):
        scrape(url, 5)


def test_nobody_answers() -> None:
    with answering(b"") as url:
        pass
    result = CliRunner().invoke(app, ["top", "--once", "--metrics", url])
    assert result.exit_code == 1
    assert result.stderr == f"error: no metrics from {url}: Connection refused\n"


@pytest.mark.parametrize(
    "arguments", [["--once", "--metrics", "file:///etc/passwd"], [], ["--once", "--interval", "0"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, ["top", *arguments]).exit_code == 2


def test_a_terminal_without_unicode_gets_what_it_can_show(before: str, after: str) -> None:
    script = "from damoserve_client.cli import main; main()"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with answering(before.encode(), 200, after.encode()) as url:
        command = [sys.executable, "-c", script, "top", "--once", "--interval", "0.1", "--metrics", url]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    assert "mean ms" in result.stdout


def test_the_extra_is_named_where_it_is_missing() -> None:
    script = "import sys; sys.modules['prometheus_client'] = None; from damoserve_client.cli import main; main()"
    command = [sys.executable, "-c", script, "top", "--once"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.endswith("Install it: pip install 'damoserve[top]'\n")
