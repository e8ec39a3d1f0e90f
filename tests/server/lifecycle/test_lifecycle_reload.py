"""Versions and profiles change under traffic: no answer is wrong, none is lost, and no memory stays behind."""

import asyncio
import gc
import shutil
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from damoserve.v1 import admin_pb2 as admin_pb
from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_profiles.golden import GOLDEN_FILE
from damoserve_profiles.manifest import Manifest
from damoserve_profiles.repository import ALIASES_FILE, BUNDLED
from damoserve_server import app
from damoserve_server.engines.engine import Engine, EngineError, EngineOptions, Outputs
from damoserve_server.engines.onnxruntime import OnnxRuntimeEngine
from tests.support.administration import FRENCH, Callers, active, administered, only_version
from tests.support.pictures import Pictures
from tests.support.server import Samples, Serve
from tests.support.valve import Valve

LABELS = {3: ("red", "green", "blue"), 4: FRENCH}
RELOAD = admin_pb.ReloadModelRequest(model="colours")
PATIENT: dict[str, Any] = {"max_queue": 64, "tiers": {"balanced": {"objective_ms": 60_000}}}


@pytest.fixture
def next_version(repository: Path, new_profile: Callable[..., None]) -> Path:
    """Version 4 is there, but 3 is served at the start."""
    for profile, ap in (("accurate", 0.7), ("quick", 0.5)):
        new_profile(repository, profile, ap=ap, version=4, labels=FRENCH)
    (repository / "colours" / ALIASES_FILE).write_text('{"serving": 3}')
    return repository / "colours" / "4"


def use_newest(repository: Path) -> None:
    (repository / "colours" / ALIASES_FILE).unlink()


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


async def test_a_good_version_takes_over_under_sixteen_callers(
    serve: Serve, repository: Path, next_version: Path, pictures: Pictures
) -> None:
    async with administered(serve, workers=2, **PATIENT) as (client, admin):
        use_newest(repository)
        async with Callers(client, pictures) as callers:
            await admin.ReloadModel(RELOAD)
            switched = len(callers.answers)
            await callers.more(2)
    assert callers.failures == []
    callers.check(LABELS)
    versions = [answer.model_version for _, answer in callers.answers]
    assert {3} <= set(versions[:switched])
    assert versions[-16:] == [4] * 16


INFO = "damoserve_profile_info"


def profiles_shown(metrics: Samples) -> list[tuple[str, str, str, float]]:
    return sorted(
        (s.labels["profile"], s.labels["version"], s.labels["variant"], s.value)
        for s in metrics._samples
        if s.name == INFO
    )


def test_the_metrics_tell_of_the_version_that_serves_and_of_no_other(serve: Serve, next_version: Path) -> None:
    async def scenario() -> list[list[tuple[str, str, str, float]]]:
        async with administered(serve) as (client, admin):
            shown = [profiles_shown(await client.metrics())]
            for version in (4, 4, 3):
                await admin.ReloadModel(admin_pb.ReloadModelRequest(model="colours", version=version))
                shown.append(profiles_shown(await client.metrics()))
            return shown

    versions = [[("accurate", version, "P", 1.0), ("quick", version, "P", 1.0)] for version in ("3", "4", "4", "3")]
    assert asyncio.run(scenario()) == versions


async def test_back_and_forth_under_sixteen_callers(serve: Serve, next_version: Path, pictures: Pictures) -> None:
    async with administered(serve, workers=2, **PATIENT) as (client, admin), Callers(client, pictures) as callers:
        for version in (4, 3, 4, 3, 4):
            await admin.ReloadModel(admin_pb.ReloadModelRequest(model="colours", version=version))
            await callers.more()
    assert callers.failures == []
    callers.check(LABELS)


async def test_stopping_under_sixteen_callers_answers_or_refuses_every_call(
    serve: Serve, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that come in the moment in which the port closes. What gRPC has not handed out then it cancels itself:
    hardly any, as `python -m benchmarks.faults SIGTERM` counts."""
    monkeypatch.setattr(app, "LAST_CALLS_SECONDS", 0.5)
    async with administered(serve, workers=2, **PATIENT) as (client, _), Callers(client, pictures) as callers:
        await client.application.stop()
        await callers.more()
    callers.check({3: LABELS[3]})
    codes = Counter(failure.code() for failure in callers.failures)
    assert codes.keys() <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert codes[grpc.StatusCode.UNAVAILABLE] >= codes[grpc.StatusCode.CANCELLED]


def corrupt(version: Path) -> None:
    damage(version / "quick" / "model.onnx")


def incomplete(version: Path) -> None:
    (version / "quick" / "manifest.json").unlink()


def empty(version: Path) -> None:
    shutil.rmtree(version / "quick")
    shutil.rmtree(version / "accurate")


@pytest.mark.parametrize(
    "case",
    [
        (corrupt, "a file of colours/4/quick is not what its manifest promises"),
        (incomplete, "colours/4/quick/manifest.json is not a valid manifest"),
        (empty, "it has no profile"),
    ],
)
async def test_a_bad_version_is_refused_under_sixteen_callers(
    serve: Serve, repository: Path, next_version: Path, pictures: Pictures, case: tuple[Callable[[Path], None], str]
) -> None:
    harm, what = case
    harm(next_version)
    async with administered(serve, workers=2, **PATIENT) as (client, admin):
        use_newest(repository)
        async with Callers(client, pictures) as callers:
            failure = await client.failure(admin.ReloadModel(RELOAD))
            await callers.more()
        listed = (await client.profiles.ListProfiles(pb.ListProfilesRequest())).profiles
        metrics = await client.metrics()
    assert callers.failures == []
    callers.check({3: LABELS[3]})
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_REFUSED")
    assert "version 3 keeps serving" in failure.message
    assert what in failure.message
    serving = [(profile.model_version, profile.state) for profile in listed[:2]]
    assert serving == [(3, pb.Profile.STATE_ACTIVE)] * 2
    assert {(profile.model_version, profile.state) for profile in listed[2:]} <= {(4, pb.Profile.STATE_FAILED)}
    assert all(profile.error in failure.message for profile in listed[2:])
    assert metrics.sum("damoserve_reloads_total", model="colours", result="refused") == 1
    assert metrics.sum("damoserve_profile_state", model="colours", state="active") == 2


async def test_an_engine_that_refuses_keeps_the_old_version(
    serve: Serve, repository: Path, next_version: Path, pictures: Pictures
) -> None:
    def refuse(model: bytes, manifest: Manifest, options: EngineOptions) -> Engine:
        raise EngineError("secret words of the runtime")

    async with administered(serve, only_version(4, refuse)) as (client, admin):
        use_newest(repository)
        failure = await client.failure(admin.ReloadModel(RELOAD))
        answer = await client.detect(pictures.red)
    assert failure.reason == "VERSION_REFUSED"
    assert "secret" not in failure.message
    assert answer.model_version == 3


async def until_gone(*profiles: Any) -> None:
    """A worker answers before it lets go."""
    async with asyncio.timeout(20):
        while any(profile() is not None for profile in profiles):
            gc.collect()
            await asyncio.sleep(0)


async def test_a_request_ends_in_the_version_that_it_began_in(
    serve: Serve, repository: Path, next_version: Path, pictures: Pictures, valve: Valve
) -> None:
    async with administered(serve, only_version(3, valve.load), workers=2) as (client, admin):
        use_newest(repository)
        gone = [weakref.ref(profile) for profile in active(client)]
        valve.shut()
        old = asyncio.ensure_future(client.detect(pictures.red))
        await valve.entered()
        await admin.ReloadModel(RELOAD)
        new = await client.detect(pictures.red)
        gc.collect()
        held = [profile() is not None for profile in gone]
        valve.open()
        answers = (await old).model_version, new.model_version
        await until_gone(*gone)
    assert answers == (3, 4)
    assert held == [True, True]  # it may still say which profiles it allowed


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
async def test_a_replaced_version_is_freed_at_once_whatever_came_of_its_requests(
    serve: Serve, repository: Path, next_version: Path, pictures: Pictures, valve: Valve
) -> None:
    """A collection may be minutes away, and a version takes hundreds of megabytes."""

    async def stream() -> AsyncIterator[pb.DetectStreamRequest]:
        yield pb.DetectStreamRequest(options=pb.StreamOptions())
        for image in (pictures.red, b"no image", b""):
            yield pb.DetectStreamRequest(frame=pb.Frame(image=pb.Image(content=image)))

    async with administered(serve, valve.load) as (client, admin):
        gone = [weakref.ref(profile) for profile in active(client)]
        await client.detect(pictures.red)
        wrong: list[tuple[bytes, dict[str, Any]]] = [(b"no image", {}), (b"", {}), (pictures.red, {"profile": "none"})]
        for image, fields in wrong:
            await client.failure(client.detect(image, **fields))
        valve.shut()
        left = client.detect(pictures.red)
        await valve.entered()
        late = await client.failure(client.detect(pictures.red, timeout=0.1))
        left.cancel()
        valve.open()
        client.learn(30.0)
        refused = await client.failure(client.detect(pictures.red, latency_budget={"seconds": 1}))
        frames = [answer async for answer in pb_grpc.DetectionServiceStub(client.channel).DetectStream(stream())]
        use_newest(repository)
        await admin.ReloadModel(RELOAD)
        async with asyncio.timeout(20):
            while any(profile() is not None for profile in gone):
                await asyncio.sleep(0)
    assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert refused.reason == "DEADLINE_UNREACHABLE"
    assert [answer.WhichOneof("outcome") for answer in frames] == ["error"] * 3


async def test_unloading_a_busy_profile_loses_no_request(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    async with administered(serve, valve.load, max_batch_size=1) as (client, admin):
        [accurate, _] = map(weakref.ref, active(client))
        valve.shut()
        calls = [asyncio.ensure_future(client.detect(pictures.red, profile="accurate")) for _ in range(8)]
        await client.until(lambda now: now.sum("damoserve_queued_requests", state="ready") == 7)
        await admin.UnloadProfile(admin_pb.UnloadProfileRequest(profile="accurate"))
        refused = await client.failure(client.detect(pictures.red, profile="accurate"))
        valve.open()
        answers = await asyncio.gather(*calls)
        await until_gone(accurate)
    assert refused.reason == "PROFILE_UNAVAILABLE"
    assert [(answer.profile, len(answer.detections)) for answer in answers] == [("accurate", 4)] * 8


async def test_unloading_under_sixteen_callers_sends_them_elsewhere(serve: Serve, pictures: Pictures) -> None:
    async with administered(serve, workers=2, **PATIENT) as (client, admin), Callers(client, pictures) as callers:
        for _ in range(3):
            await admin.UnloadProfile(admin_pb.UnloadProfileRequest(profile="accurate"))
            await callers.more()
            await admin.LoadProfile(admin_pb.LoadProfileRequest(profile="accurate"))
            await callers.more()
    assert callers.failures == []
    callers.check({3: LABELS[3]})
    assert {answer.profile for _, answer in callers.answers} == {"accurate", "quick"}


async def test_another_input_size_comes_with_a_version(serve: Serve, repository: Path, pictures: Pictures) -> None:
    """Its buffers are made before it serves: the bundled network takes 416 x 416 pixels."""
    target = repository / "blood-cells" / "1" / "int8+pruned"
    async with administered(serve) as (client, admin):
        shutil.copytree(BUNDLED / "blood-cells" / "1" / "int8+pruned", target)
        await admin.ReloadModel(admin_pb.ReloadModelRequest(model="blood-cells"))
        cells = await client.detect((target / "golden.png").read_bytes(), model="blood-cells")
        colours = await client.detect(pictures.red)
    assert len(cells.detections) > 20
    assert colours.model == "colours"


def bundled(root: Path, profile: str) -> Path:
    shutil.copytree(BUNDLED / "blood-cells" / "1" / profile, root / "blood-cells" / "1" / profile)
    return root / "blood-cells" / "1" / profile


async def test_memory_is_flat_after_twenty_reloads(serve: Serve, repository: Path, tmp_path: Path) -> None:
    picture = (bundled(tmp_path / "cells", "pruned") / "golden.png").read_bytes()
    process = psutil.Process()
    async with administered(serve, repository=tmp_path / "cells", max_batch_size=1) as (client, admin):

        async def reload(times: int) -> int:
            for _ in range(times):
                await admin.ReloadModel(admin_pb.ReloadModelRequest(model="blood-cells"))
                await client.detect(picture, profile="pruned")
            gc.collect()
            return process.memory_info().rss

        before, after = await reload(5), await reload(20)
    assert after - before < 50e6  # one leaked engine a reload would be 20 x at least 4 MB


async def test_a_model_that_computes_something_else_is_refused(
    serve: Serve, repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The hashes agree, the golden detections do not: as on a machine whose kernels are wrong."""
    bundled(tmp_path / "cells", "int8+pruned")

    class Wrong:
        def __init__(self, engine: Engine) -> None:
            self._engine = engine

        def run(self, images: NDArray[np.uint8]) -> Outputs:
            scores, boxes = self._engine.run(images)
            return scores * 0.9, boxes

    broken = False

    def load(model: bytes, manifest: Manifest, options: EngineOptions) -> Engine:
        engine = OnnxRuntimeEngine(model, manifest, options)
        return Wrong(engine) if broken else engine

    async with administered(serve, load, repository=tmp_path / "cells") as (client, admin):
        broken = True
        failure = await client.failure(admin.ReloadModel(admin_pb.ReloadModelRequest(model="blood-cells")))
        [profile] = active(client, "blood-cells")
        with pytest.raises(EngineError, match="does not compute what its manifest promises"):
            profile.new_engine()
        broken = False
        engine = profile.new_engine()
    assert failure.reason == "VERSION_REFUSED"
    assert "does not find in its golden image" in failure.message
    assert "has the score" in caplog.text
    assert isinstance(engine, OnnxRuntimeEngine)


async def test_without_golden_files_it_is_loaded_unchecked(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with serve():
        pass
    assert "colours/quick has no golden image" in caplog.text


async def test_a_golden_file_that_is_not_one_fails_the_profile(
    serve: Serve, repository: Path, new_profile: Callable[..., None], pictures: Pictures
) -> None:
    folder = repository / "colours" / "3" / "accurate"
    (folder / GOLDEN_FILE).write_text("{}")
    manifest = folder / "manifest.json"
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    record = f'"files": {{"{GOLDEN_FILE}": {{"bytes": 2, "sha256": "{digest}"}},'
    manifest.write_text(manifest.read_text().replace('"files": {', record))
    async with serve() as client:
        failed = await client.profiles.GetProfile(pb.GetProfileRequest(profile="accurate"))
        answer = await client.detect(pictures.red)
    assert (failed.state, answer.profile) == (pb.Profile.STATE_FAILED, "quick")
    assert "not what its manifest promises" in failed.error


async def test_an_engine_is_made_anew_when_its_file_is_gone(serve: Serve, repository: Path) -> None:
    async with serve() as client:
        [profile, other] = active(client)
        shutil.rmtree(repository / "colours" / "3" / "accurate")
        engine = profile.new_engine()
        (repository / "colours" / "3" / "quick" / "model.onnx").write_bytes(b"overwritten")
        with pytest.raises(Exception, match="differs from its manifest"):
            other.new_engine()
    assert isinstance(engine, OnnxRuntimeEngine)
