"""BYTES, packed and unpacked; a stream's work, in order; the index."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from damoserve_profiles.repository import ProfileFolder
from damoserve_server.kserve.describe import index_entry
from damoserve_server.kserve.streaming import in_order
from damoserve_server.kserve.targets import Target
from damoserve_server.kserve.tensors import pack, unpack
from damoserve_server.models.catalogue import IdleProfile, Model, ProfileState

elements = st.lists(st.binary(max_size=40), max_size=8)


@given(elements)
def test_bytes_survive_packing(given_elements: list[bytes]) -> None:
    assert unpack(pack(given_elements), len(given_elements)) == given_elements


@given(elements, st.integers(0, 9))
def test_another_count_is_refused(given_elements: list[bytes], count: int) -> None:
    if count != len(given_elements):
        with pytest.raises(ValueError, match="raw contents"):
            unpack(pack(given_elements), count)


@given(st.binary(max_size=60), st.integers(0, 8))
def test_whatever_comes_is_unpacked_wholly_or_refused(packed: bytes, count: int) -> None:
    try:
        unpacked = unpack(packed, count)
    except ValueError:
        return
    assert pack(unpacked) == packed


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=8))
def test_triton_packs_alike(given_elements: list[bytes]) -> None:
    utils = pytest.importorskip("tritonclient.utils", reason="tritonclient is not installed")
    serialised = utils.serialize_byte_tensor(np.array(given_elements, np.object_))
    assert pack(given_elements) == serialised.item()
    assert utils.deserialize_bytes_tensor(pack(given_elements)).tolist() == given_elements


class Bench:
    """Work that ends when it is told to."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.cancelled: set[int] = set()
        self.ends: dict[int, asyncio.Event] = {}

    async def work(self, number: int) -> int:
        self.begun.append(number)
        self.ends[number] = asyncio.Event()
        try:
            await self.ends[number].wait()
        except asyncio.CancelledError:
            self.cancelled.add(number)
            raise
        return number


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def settle() -> None:
    """Lets all go on that can."""
    for _ in range(20):
        await asyncio.sleep(0)


@given(st.permutations(range(4)))
async def test_results_come_in_the_order_of_the_source(order: list[int]) -> None:
    bench = Bench()
    results = asyncio.ensure_future(collect(in_order(numbers(4), bench.work, depth=4)))
    await settle()
    for number in order:
        bench.ends[number].set()
        await settle()
    result = await results
    assert result == [0, 1, 2, 3]


async def collect(results: AsyncIterator[int]) -> list[int]:
    return [result async for result in results]


async def test_only_so_much_is_begun() -> None:
    bench = Bench()
    results = asyncio.ensure_future(collect(in_order(numbers(5), bench.work, depth=2)))
    await settle()
    seen = [list(bench.begun)]
    bench.ends[1].set()  # waits for the one before it, and keeps its place
    await settle()
    seen.append(list(bench.begun))
    bench.ends[0].set()
    await settle()
    seen.append(list(bench.begun))
    for number in (2, 3, 4):
        bench.ends[number].set()
        await settle()
    found = await results
    assert seen == [[0, 1], [0, 1], [0, 1, 2, 3]]
    assert found == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_no_work_goes_on_when_nobody_takes_the_results(how: str) -> None:
    bench = Bench()
    results = in_order(numbers(5), bench.work, depth=3)
    first = asyncio.ensure_future(anext(results))
    await settle()
    if how == "cancelled":
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    else:
        bench.ends[0].set()
        assert await first == 0
        await results.aclose()
    assert set(bench.begun) - bench.cancelled == (set() if how == "cancelled" else {0})


@pytest.mark.parametrize("steps", range(1, 5))
async def test_no_work_goes_on_when_the_end_is_cut_short(steps: int) -> None:
    """gRPC cancels the call of a client that is gone shortly after a write to it has failed."""
    bench = Bench()
    results = in_order(numbers(5), bench.work, depth=3)
    first = asyncio.ensure_future(anext(results))
    await settle()
    bench.ends[0].set()
    await first
    closing = asyncio.ensure_future(results.aclose())
    for _ in range(steps):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    await settle()
    result = set(bench.begun) - bench.cancelled
    assert result == {0}


async def test_a_source_that_fails_ends_the_results() -> None:
    async def failing() -> AsyncIterator[int]:
        yield 0
        raise ConnectionError

    bench = Bench()
    results = in_order(failing(), bench.work, depth=2)
    first = asyncio.ensure_future(anext(results))
    await settle()
    bench.ends[0].set()
    assert await first == 0
    with pytest.raises(ConnectionError):
        await anext(results)


@pytest.mark.parametrize(
    ("states", "index"),
    [
        ([ProfileState.LOADING], ["LOADING", "LOADING"]),
        ([ProfileState.UNLOADED], ["UNAVAILABLE", "UNAVAILABLE"]),
        ([ProfileState.UNLOADED, ProfileState.LOADING], ["LOADING", "UNAVAILABLE", "LOADING"]),
    ],
)
def test_the_index_tells_what_is_being_loaded(states: list[ProfileState], index: list[str]) -> None:
    folders = [ProfileFolder(Path(f"/models/colours/3/{number}")) for number in range(len(states))]
    profiles = [IdleProfile(folder, None, state) for folder, state in zip(folders, states, strict=True)]
    model = Model.of("colours", 3, profiles)
    entries = [index_entry(target) for target in (Target(model), *(Target(model, each) for each in profiles))]
    assert [entry.state for entry in entries] == index
    assert all(entry.reason for entry in entries)
