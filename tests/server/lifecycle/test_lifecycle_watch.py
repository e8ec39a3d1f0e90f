"""The watch of the repository: what is copied there is served, once it is whole."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from damoserve.v1 import detection_pb2 as pb
from damoserve_profiles.repository import ALIASES_FILE, Repository
from damoserve_server.models import lookup
from tests.support.administration import FRENCH, Callers, active
from tests.support.pictures import Pictures
from tests.support.server import Samples, Serve, ServerClient

OFTEN: dict[str, Any] = {"watch_seconds": 0.01, "workers": 2, "tiers": {"balanced": {"objective_ms": 60_000}}}

Watching = Callable[[], AbstractAsyncContextManager[ServerClient]]


@pytest.fixture
def watching(serve: Serve) -> Watching:
    @asynccontextmanager
    async def running() -> AsyncIterator[ServerClient]:
        async with serve(**OFTEN) as client:
            yield client

    return running


async def counted(client: ServerClient, result: str, model: str = "colours", times: int = 1) -> None:
    await client.until(lambda now: _reloads(now, result, model) >= times)


def _reloads(now: Samples, result: str, model: str) -> float:
    try:
        return now.sum("damoserve_reloads_total", model=model, result=result)
    except AssertionError:  # a model that was never heard of has no series
        return 0


async def looks(client: ServerClient, times: int = 3) -> None:
    """Returns after so many looks at the repository."""
    done = asyncio.Event()
    left = times
    look = Repository.models

    def counted_look(self: Repository) -> list[str]:
        nonlocal left
        left -= 1
        if left <= 0:
            loop.call_soon_threadsafe(done.set)
        return look(self)

    loop = asyncio.get_running_loop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Repository, "models", counted_look)
        async with asyncio.timeout(20):
            await done.wait()


async def test_a_new_version_is_served_under_sixteen_callers(
    watching: Watching, repository: Path, new_profile: Callable[..., None], pictures: Pictures
) -> None:
    async with watching() as client, Callers(client, pictures) as callers:
        new_profile(repository, "accurate", ap=0.7, version=4, labels=FRENCH)
        await counted(client, "switched")
        await callers.more(2)
    assert callers.failures == []
    callers.check({3: ("red", "green", "blue"), 4: FRENCH})
    assert [answer.model_version for _, answer in callers.answers[-16:]] == [4] * 16


async def test_nothing_is_loaded_again_without_a_change(watching: Watching) -> None:
    async with watching() as client:
        before = active(client)
        await looks(client, 5)
        result = before == active(client), _reloads(await client.metrics(), "switched", "colours")
    assert result == (True, 0)


async def test_half_a_version_is_reported_once_and_served_when_it_is_whole(
    watching: Watching,
    repository: Path,
    new_profile: Callable[..., None],
    pictures: Pictures,
    caplog: pytest.LogCaptureFixture,
) -> None:
    new_profile(repository, "accurate", ap=0.7, version=4)
    new_profile(repository, "quick", ap=0.5, version=4)
    whole, half = repository / "colours" / "4", repository / ".4"
    whole.rename(half)
    async with watching() as client:
        shutil.copytree(half, whole, ignore=lambda folder, names: {"model.onnx"} if "quick" in folder else ())
        await counted(client, "refused")
        await looks(client, 5)
        before = await client.metrics(), await client.detect(pictures.red)
        listed = (await client.profiles.ListProfiles(pb.ListProfilesRequest())).profiles
        shutil.copy(half / "quick" / "model.onnx", whole / "quick")
        await counted(client, "switched")
        after = (await client.profiles.ListProfiles(pb.ListProfilesRequest())).profiles
        (metrics, answer) = before
    assert answer.model_version == 3
    assert _reloads(metrics, "refused", "colours") == 1
    assert caplog.text.count("colours has changed, and is not loaded") == 1
    assert [(p.model_version, p.state) for p in listed] == [
        (3, pb.Profile.STATE_ACTIVE),
        (3, pb.Profile.STATE_ACTIVE),
        (4, pb.Profile.STATE_FAILED),
    ]
    assert [(p.model_version, p.state) for p in after] == [(4, pb.Profile.STATE_ACTIVE)] * 2


def test_models_come_and_go(
    watching: Watching, repository: Path, new_profile: Callable[..., None], pictures: Pictures
) -> None:
    async def scenario() -> tuple[str, str | None, set[tuple[str, str]], str]:
        async with watching() as client:
            new_profile(repository, "only", ap=0.1, name="birds")
            await counted(client, "switched", "birds")
            there = await client.detect(pictures.red, model="birds")
            shutil.rmtree(repository / "birds")
            await counted(client, "removed", "birds")
            gone = await client.failure(client.detect(pictures.red, model="birds"))
            shown = {
                (s.name, s.labels["model"])
                for s in (await client.metrics())._samples
                if s.name in {"damoserve_profile_info", "damoserve_profile_accuracy", "damoserve_profile_state"}
            }
            return there.model, gone.reason, shown, (await client.detect(pictures.red)).model

    shown = {(f"damoserve_profile_{what}", "colours") for what in ("info", "accuracy", "state")}
    assert asyncio.run(scenario()) == ("birds", "MODEL_NOT_FOUND", shown, "colours")


async def test_an_alias_that_is_written_rolls_back(
    watching: Watching, repository: Path, new_profile: Callable[..., None], pictures: Pictures
) -> None:
    new_profile(repository, "accurate", ap=0.7, version=4)
    async with watching() as client:
        before = (await client.detect(pictures.red)).model_version
        Repository(repository).set_alias("colours", "serving", 3)
        await counted(client, "switched")
        now = await client.metrics()
        assert now.sum("damoserve_profile_accuracy", model="colours", profile="accurate") == 0.6
        middle = (await client.detect(pictures.red)).model_version
        (repository / "colours" / ALIASES_FILE).write_text("what?")
        await counted(client, "refused")
        await looks(client, 4)
        refused = _reloads(await client.metrics(), "refused", "colours")
        result = before, middle, (await client.detect(pictures.red)).model_version, refused
    assert result == (4, 3, 3, 1)


async def test_an_alias_that_changes_while_it_is_followed_is_not_missed(
    watching: Watching,
    repository: Path,
    new_profile: Callable[..., None],
    pictures: Pictures,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    new_profile(repository, "accurate", ap=0.7, version=4)
    aliases = Repository(repository)
    changes = [4]
    find_version = lookup.find_version

    def find_before_the_change(*arguments: Any) -> int:
        version = find_version(*arguments)
        while changes:
            aliases.set_alias("colours", "serving", changes.pop())
        return version

    monkeypatch.setattr(lookup, "find_version", find_before_the_change)
    async with watching() as client:
        aliases.set_alias("colours", "serving", 3)
        await counted(client, "switched")
        await looks(client, 4)
        result = (await client.detect(pictures.red)).model_version
    assert result == 4
    assert not changes


async def test_a_repository_that_vanishes_takes_nothing_along(
    watching: Watching, repository: Path, pictures: Pictures, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching() as client:
        away = repository.rename(repository.with_name("away"))
        while "is gone" not in caplog.text:
            await client.health()
        answer = await client.detect(pictures.red)
        away.rename(repository)
        await looks(client, 4)
        reloads = _reloads(await client.metrics(), "switched", "colours")
    assert len(answer.detections) == 4
    assert reloads == 0
