"""Callers that leave, or whose time runs out, at every stage: their memory is free only when no thread is in it."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray

from damoserve_profiles import imaging
from damoserve_server.configuration.settings import usable_cores
from tests.support.pictures import Pictures
from tests.support.server import Samples, Serve
from tests.support.timeouts import TIMEOUT
from tests.support.valve import Valve


class Gate:
    """Holds decoding up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.count = 0
        decode = imaging.decode

        def slowly(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
            self.count += 1
            self.entered.release()
            assert self.opened.wait(TIMEOUT)
            return decode(data, max_pixels)

        monkeypatch.setattr(imaging, "decode", slowly)

    async def wait_for(self, number: int) -> None:
        for _ in range(number):
            assert await asyncio.to_thread(self.entered.acquire, timeout=TIMEOUT)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


def leased(count: int) -> Callable[[Samples], bool]:
    return lambda now: now.sum("damoserve_pool_slots", state="leased") == count


def queued(count: int, **labels: str) -> Callable[[Samples], bool]:
    return lambda now: now.sum("damoserve_queued_requests", **labels) == count


async def test_who_leaves_during_decoding_frees_the_memory_when_the_thread_has_left_it(
    serve: Serve, pictures: Pictures, gate: Gate
) -> None:
    async with serve() as client:
        call = client.detect(pictures.red)
        call_ends = asyncio.ensure_future(call.code())
        await gate.wait_for(1)
        call.cancel()
        await client.until(queued(0))
        held = (await client.metrics()).sum("damoserve_pool_slots", state="leased")
        gate.opened.set()
        await client.until(leased(0))
        code, computed = await call_ends, (await client.metrics()).sum("damoserve_batch_size_count")
    assert code == grpc.StatusCode.CANCELLED
    assert held == 1
    assert computed == 0


async def test_who_leaves_before_decoding_is_not_decoded(serve: Serve, pictures: Pictures, gate: Gate) -> None:
    cores = usable_cores()
    async with serve() as client:
        busy = [asyncio.ensure_future(client.detect(pictures.red)) for _ in range(cores)]
        await gate.wait_for(cores)
        call = client.detect(pictures.red)
        await client.until(leased(cores + 1))
        call.cancel()
        await client.until(leased(cores))
        gate.opened.set()
        await asyncio.gather(*busy)
    assert gate.count == cores


@pytest.mark.parametrize("stage", ["decoding", "waiting", "computing"])
async def test_the_deadline_is_answered_at_every_stage(
    serve: Serve, pictures: Pictures, gate: Gate, valve: Valve, stage: str
) -> None:
    """By budget alone: the call itself has all the time, and its answer comes while the work is still held up."""
    async with serve(valve.load) as client:
        client.learn(0.001)
        if stage != "decoding":
            gate.opened.set()
            valve.shut()
        calls: list[asyncio.Future[Any]] = []
        if stage == "waiting":
            calls.append(asyncio.ensure_future(client.detect(pictures.red)))
            await valve.entered()
        failure = await client.failure(client.detect(pictures.red, latency_budget=Duration(nanos=200_000_000)))
        held = (await client.metrics()).sum("damoserve_pool_slots", state="leased")
        gate.opened.set()
        valve.open()
        await asyncio.gather(*calls)
        await client.until(leased(0))
        computed = (await client.metrics()).sum("damoserve_batch_size_sum")
    assert (failure.code, failure.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED")
    assert held == 1  # what a thread works in, its own or the other call's
    assert computed == {"decoding": 0, "waiting": 1, "computing": 1}[stage]
