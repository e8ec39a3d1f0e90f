"""What has begun is what has ended and what is open, whenever somebody looks."""

import asyncio
import random
import sys
import threading
import urllib.request
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from damoserve_server.configuration.settings import Tiers
from damoserve_server.metrics.exposition import Registry
from damoserve_server.metrics.metrics import Metrics
from damoserve_server.metrics.requests import NO_TIER, Outcome
from damoserve_server.scheduling.selection import Tier
from tests.support.pictures import Pictures
from tests.support.server import Samples, Serve, ServerClient
from tests.support.timeouts import TIMEOUT
from tests.support.valve import Valve

CALLERS = 12
CALLS = 25
DETECT = {"grpc_service": "damoserve.v1.DetectionService", "grpc_method": "Detect"}


def open_calls(now: Samples) -> float:
    return now.sum("grpc_server_started_total", **DETECT) - now.sum("grpc_server_handled_total", **DETECT)


def read(client: ServerClient) -> str:
    url = f"http://127.0.0.1:{client.application.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        text: str = response.read().decode()
    return text


async def call_all(client: ServerClient, pictures: Pictures, seed: int) -> int:
    """Calls of all kinds, one after the other; how many ended in no answer."""
    rng, failed = random.Random(seed), 0
    for _ in range(CALLS):
        fields: dict[str, Any] = rng.choice(
            [
                {},
                {"profile": "quick"},
                {"model": "birds"},
                {"latency_tier": 1},
                {"latency_budget": Duration(nanos=10**6)},
            ]
        )
        call = client.detect(rng.choice([pictures.red, pictures.red, b"", b"no image"]), **fields)
        if rng.random() < 0.2:
            asyncio.get_running_loop().call_later(rng.random() * 0.01, call.cancel)
        try:
            await call
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            failed += 1
    return failed


async def scrape_until(client: ServerClient, loaded: asyncio.Future[list[int]]) -> list[str]:
    texts = []
    while not loaded.done():
        texts.append(await asyncio.to_thread(read, client))
    return texts


async def test_sums_hold_at_any_moment_under_load(serve: Serve, pictures: Pictures) -> None:
    async with serve(workers=2, max_queue=6) as client:
        loaded = asyncio.gather(*(call_all(client, pictures, seed) for seed in range(CALLERS)))
        texts = await scrape_until(client, loaded)
        await client.until(lambda now: open_calls(now) == 0)
        failed, scrapes, end = sum(await loaded), [Samples(text) for text in texts], await client.metrics()
    assert len(scrapes) > 3
    assert any(open_calls(now) > 0 for now in scrapes), "nobody looked while a call was open"
    before = 0.0
    for now in [*scrapes, end]:
        assert 0 <= open_calls(now) <= CALLERS
        for tier in (*Tier, NO_TIER):
            assert 0 <= now.sum("damoserve_requests_in_flight", tier=tier) <= CALLERS
        arrived = now.sum("damoserve_requests_total") + now.sum("damoserve_requests_in_flight")
        assert arrived >= before
        before = arrived
    # Who cancels before the server has read the call is not in it.
    assert 0 < end.sum("damoserve_requests_total") <= CALLERS * CALLS
    assert end.sum("damoserve_requests_total") == end.sum("grpc_server_started_total", **DETECT)
    assert end.sum("damoserve_requests_in_flight") == 0
    answered = sum(end.sum("damoserve_requests_total", outcome=outcome) for outcome in ("in_time", "late"))
    assert CALLERS * CALLS - failed <= answered
    for name in ("damoserve_request_seconds_count", "damoserve_routed_total", "damoserve_served_accuracy_count"):
        assert end.sum(name) == answered
    assert end.sum("grpc_server_handling_seconds_count", **DETECT) == end.sum("grpc_server_handled_total", **DETECT)


def test_a_thread_that_looks_never_sees_more_ended_than_begun() -> None:
    metrics = Metrics(Registry(), Tiers())
    calls, tier = metrics.calls.of(("unary", "service", "method")), metrics.requests.tiers[NO_TIER]
    looks: list[tuple[float, float]] = []

    def look() -> None:
        for _ in range(5000):
            begun, *ended = (s.value for family in metrics.calls.collect() for s in family.samples)
            (in_flight,) = (
                s.value
                for family in metrics.requests.tiers.collect()
                for s in family.samples
                if family.type == "gauge" and s.labels["tier"] == NO_TIER
            )
            looks.append((begun - sum(ended), in_flight))

    thread = threading.Thread(target=look)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        while thread.is_alive():
            calls.begin()
            tier.arrive()
            tier.end(Outcome.IN_TIME)
            calls.end(grpc.StatusCode.OK, 0.01)
    finally:
        sys.setswitchinterval(interval)
    assert len(looks) == 5000
    assert set(looks) <= {(0, 0), (0, 1), (1, 0), (1, 1)}


async def test_as_many_are_in_flight_as_wait(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    async with serve(valve.load, max_batch_size=1) as client:
        valve.shut()
        calls = [asyncio.ensure_future(client.detect(pictures.red)) for _ in range(5)]
        await client.until(lambda now: now.sum("damoserve_queued_requests", state="ready") == 4)
        held = await client.metrics()
        valve.open()
        await asyncio.gather(*calls)
        end = await client.metrics()
    assert (open_calls(held), held.sum("damoserve_requests_in_flight", tier="balanced")) == (5, 5)
    assert (held.sum("damoserve_workers_busy"), held.sum("damoserve_requests_total")) == (1, 0)
    assert held.sum("damoserve_pool_slots", state="leased") == held.sum("damoserve_pool_slots_high_water") == 5
    assert (open_calls(end), end.sum("damoserve_requests_in_flight")) == (0, 0)
    assert end.sum("damoserve_pool_slots", state="leased") == 0
    assert end.sum("damoserve_pool_slots_high_water") == 5
    assert end.sum("damoserve_worker_busy_seconds_total") > end.sum("damoserve_stage_seconds_sum", stage="queue") / 4
    assert end.sum("damoserve_batches_total") == end.sum("damoserve_batch_size_count") == 5
