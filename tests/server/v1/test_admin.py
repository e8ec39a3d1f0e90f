"""The admin service: what each call does, and every way it can fail."""

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from damoserve.v1 import admin_pb2 as admin_pb
from damoserve.v1 import admin_pb2_grpc as admin_grpc
from damoserve.v1 import detection_pb2 as pb
from damoserve_profiles.repository import ALIASES_FILE, SERVING
from damoserve_server.models.catalogue import CatalogueError
from tests.support.administration import FRENCH, administered, only_version
from tests.support.pictures import Pictures
from tests.support.server import MakeApplication, Serve
from tests.support.valve import Valve

CODE = grpc.StatusCode


async def test_it_is_off_by_default(serve: Serve) -> None:
    async with serve() as client:
        result = client.application.admin_port
    assert result == 0


async def test_unloaded_and_loaded_again(serve: Serve, pictures: Pictures) -> None:
    async with administered(serve) as (client, admin):
        request = {"model": "colours", "profile": "accurate"}
        states = [(await admin.UnloadProfile(admin_pb.UnloadProfileRequest(**request))).state for _ in range(2)]
        refused = await client.failure(client.detect(pictures.red, profile="accurate"))
        other = (await client.detect(pictures.red)).profile
        metrics = await client.metrics()
        states += [(await admin.LoadProfile(admin_pb.LoadProfileRequest(**request))).state for _ in range(2)]
        again = (await client.detect(pictures.red, profile="accurate")).profile
    assert states == [pb.Profile.STATE_UNLOADED] * 2 + [pb.Profile.STATE_ACTIVE] * 2
    assert (refused.code, refused.reason) == (CODE.FAILED_PRECONDITION, "PROFILE_UNAVAILABLE")
    assert refused.message == "the profile accurate of the model colours was unloaded"
    assert (other, again) == ("quick", "accurate")
    assert metrics.sum("damoserve_profile_state", profile="accurate", state="unloaded") == 1
    assert metrics.sum("damoserve_profile_state", profile="accurate", state="active") == 0


async def test_a_profile_that_is_being_loaded_says_when_to_try_again(
    serve: Serve, pictures: Pictures, valve: Valve
) -> None:
    async with administered(serve, valve.load) as (client, admin):
        await admin.UnloadProfile(admin_pb.UnloadProfileRequest(profile="accurate"))
        valve.shut()
        loading = admin.LoadProfile(admin_pb.LoadProfileRequest(profile="accurate"))
        await valve.entered()
        listed = await client.profiles.GetProfile(pb.GetProfileRequest(profile="accurate"))
        early = await client.failure(client.detect(pictures.red, profile="accurate"))
        busy = await client.failure(admin.UnloadProfile(admin_pb.UnloadProfileRequest(profile="quick")))
        valve.open()
        await loading
        state, profile = listed.state, (await client.detect(pictures.red, profile="accurate")).profile
    assert (state, profile) == (pb.Profile.STATE_LOADING, "accurate")
    assert (early.code, early.reason) == (CODE.UNAVAILABLE, "PROFILE_LOADING")
    assert early.detail(error_details_pb2.RetryInfo).retry_delay.seconds == 1
    assert (busy.code, busy.reason) == (CODE.ABORTED, "OPERATION_RUNNING")
    assert busy.detail(error_details_pb2.RetryInfo).retry_delay.seconds == 1


async def test_a_damaged_profile_is_not_loaded_again(serve: Serve, repository: Path, pictures: Pictures) -> None:
    async with administered(serve) as (client, admin):
        await admin.UnloadProfile(admin_pb.UnloadProfileRequest(profile="accurate"))
        (repository / "colours" / "3" / "accurate" / "model.onnx").write_bytes(b"no model")
        failure = await client.failure(admin.LoadProfile(admin_pb.LoadProfileRequest(profile="accurate")))
        listed = await client.profiles.GetProfile(pb.GetProfileRequest(profile="accurate"))
        profile = (await client.detect(pictures.red)).profile
    assert (failure.code, failure.reason) == (CODE.FAILED_PRECONDITION, "PROFILE_REFUSED")
    assert failure.message == listed.error
    assert str(repository) not in failure.message
    assert (listed.state, profile) == (pb.Profile.STATE_FAILED, "quick")


async def unloaded_when_free(admin: "admin_grpc.AdminServiceAsyncStub") -> pb.Profile:
    """Unloads `accurate` once no other operation runs. What is not active is left as it is: the answer tells."""
    request = admin_pb.UnloadProfileRequest(profile="accurate")
    call = admin.UnloadProfile(request)
    while await call.code() == CODE.ABORTED:
        call = admin.UnloadProfile(request)
    return await call


async def test_a_profile_whose_loading_is_given_up_is_unloaded_as_before(
    serve: Serve, pictures: Pictures, valve: Valve
) -> None:
    async with administered(serve, valve.load) as (client, admin):
        await admin.UnloadProfile(admin_pb.UnloadProfileRequest(profile="accurate"))
        valve.shut()
        loading = admin.LoadProfile(admin_pb.LoadProfileRequest(profile="accurate"))
        await valve.entered()
        loading.cancel()
        valve.open()
        state = (await unloaded_when_free(admin)).state
        metrics = await client.metrics()
        again = (await admin.LoadProfile(admin_pb.LoadProfileRequest(profile="accurate"))).state
    assert (state, again) == (pb.Profile.STATE_UNLOADED, pb.Profile.STATE_ACTIVE)
    assert metrics.sum("damoserve_profile_state", profile="accurate", state="unloaded") == 1
    assert metrics.sum("damoserve_profile_state", profile="accurate", state="loading") == 0


async def test_a_profile_whose_loading_breaks_is_unloaded_as_before(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of the server's own: what is wrong with a profile is told instead."""

    def load(*_: object) -> None:
        raise MemoryError

    async with administered(serve) as (client, admin):
        await admin.UnloadProfile(admin_pb.UnloadProfileRequest(profile="accurate"))
        with monkeypatch.context() as patch:
            patch.setattr("damoserve_server.models.loading.load_profile", load)
            failure = await client.failure(admin.LoadProfile(admin_pb.LoadProfileRequest(profile="accurate")))
        state = (await client.profiles.GetProfile(pb.GetProfileRequest(profile="accurate"))).state
    assert (failure.code, failure.reason) == (CODE.INTERNAL, "INTERNAL")
    assert state == pb.Profile.STATE_UNLOADED


async def test_rollback_by_alias(
    serve: Serve, repository: Path, new_profile: Callable[..., None], pictures: Pictures
) -> None:
    new_profile(repository, "accurate", ap=0.7, version=4, labels=FRENCH)

    async with administered(serve) as (client, admin):
        versions: list[tuple[int, str]] = []

        async def reload(**target: Any) -> None:
            status = await admin.ReloadModel(admin_pb.ReloadModelRequest(model="colours", **target))
            answer = await client.detect(pictures.red)
            assert status.serving_version == answer.model_version
            versions.append((answer.model_version, answer.detections[0].label))

        await reload(version=3)
        await admin.SetAlias(admin_pb.SetAliasRequest(model="colours", alias="stable", version=4))
        await reload(alias="stable")
        await admin.SetAlias(admin_pb.SetAliasRequest(model="colours", alias=SERVING, version=3))
        await reload()
        [status] = (await admin.ListModels(admin_pb.ListModelsRequest())).models
        removed = await admin.SetAlias(admin_pb.SetAliasRequest(model="colours", alias=SERVING))
        await reload()
    assert versions == [(3, "red"), (4, "rouge"), (3, "red"), (4, "rouge")]
    assert (status.model, status.serving_version, list(status.versions)) == ("colours", 3, [3, 4])
    assert status.aliases == {"stable": 4, "serving": 3}
    assert [profile.profile for profile in status.profiles] == ["accurate", "quick"]
    assert removed.aliases == {"stable": 4}


async def test_the_alias_decides_at_the_start(
    serve: Serve, repository: Path, new_profile: Callable[..., None], pictures: Pictures
) -> None:
    new_profile(repository, "accurate", ap=0.7, version=4)
    (repository / "colours" / ALIASES_FILE).write_text('{"serving": 3}')

    async with administered(serve) as (client, _):
        version = (await client.detect(pictures.red)).model_version
    assert version == 3


async def test_a_taken_port_is_an_error_and_leaves_no_worker(serve: Serve, application: MakeApplication) -> None:
    def workers() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("worker-")}

    async with administered(serve) as (client, _):
        before = workers()
        with pytest.raises(OSError, match="cannot listen on"):
            async with application(admin_port=client.application.admin_port):
                pass
        assert workers() == before


async def test_the_only_model_needs_aliases_that_can_be_read(application: MakeApplication, repository: Path) -> None:
    (repository / "colours" / ALIASES_FILE).write_text('{"serving": 5}')

    with pytest.raises(CatalogueError, match="wants version 5 served, which is not there"):
        async with application():
            pass


async def test_a_model_comes_while_others_serve(
    serve: Serve, repository: Path, new_profile: Callable[..., None], pictures: Pictures
) -> None:
    async with administered(serve) as (client, admin):
        absent = await client.failure(client.detect(pictures.red, model="birds"))
        new_profile(repository, "only", ap=0.1, name="birds")
        [before, _] = (await admin.ListModels(admin_pb.ListModelsRequest())).models
        await admin.ReloadModel(admin_pb.ReloadModelRequest(model="birds"))
        await client.detect(pictures.red, model="birds")
        default = (await client.detect(pictures.red)).model
        reason, metrics = absent.reason, await client.metrics()
    assert (reason, default) == ("MODEL_NOT_FOUND", "colours")
    assert (before.model, before.serving_version, list(before.versions)) == ("birds", 0, [3])
    assert metrics.sum("damoserve_reloads_total", model="birds", result="switched") == 1
    assert metrics.sum("damoserve_stage_seconds_count", model="birds", stage="inference") == 1


async def test_what_was_unloaded_stays_so_in_the_next_version(
    serve: Serve, repository: Path, new_profile: Callable[..., None]
) -> None:
    for profile in ("accurate", "quick"):
        new_profile(repository, profile, ap=0.5, version=4)

    async with administered(serve) as (client, admin):
        await admin.ReloadModel(admin_pb.ReloadModelRequest(model="colours", version=3))
        await admin.UnloadProfile(admin_pb.UnloadProfileRequest(profile="accurate"))
        status = await admin.ReloadModel(admin_pb.ReloadModelRequest(model="colours"))
        await admin.LoadProfile(admin_pb.LoadProfileRequest(profile="accurate"))
        listed = await client.profiles.ListProfiles(pb.ListProfilesRequest())
        before = [(p.profile, p.state) for p in status.profiles]
        after = [(p.model_version, p.state) for p in listed.profiles]
    assert before == [("quick", pb.Profile.STATE_ACTIVE), ("accurate", pb.Profile.STATE_UNLOADED)]
    assert after == [(4, pb.Profile.STATE_ACTIVE)] * 2


LOAD, UNLOAD, RELOAD, ALIAS = "LoadProfile", "UnloadProfile", "ReloadModel", "SetAlias"


@pytest.mark.parametrize(
    ("method", "fields", "outcome"),
    [
        (LOAD, {"model": "birds", "profile": "quick"}, (CODE.NOT_FOUND, "MODEL_NOT_FOUND")),
        (LOAD, {"profile": "slow"}, (CODE.NOT_FOUND, "PROFILE_NOT_FOUND")),
        (LOAD, {"profile": "../../colours/3/quick"}, (CODE.NOT_FOUND, "PROFILE_NOT_FOUND")),
        (LOAD, {"profile": ""}, (CODE.NOT_FOUND, "PROFILE_NOT_FOUND")),
        (UNLOAD, {"model": "birds", "profile": "quick"}, (CODE.NOT_FOUND, "MODEL_NOT_FOUND")),
        (UNLOAD, {"profile": "x" * 5000}, (CODE.NOT_FOUND, "PROFILE_NOT_FOUND")),
        (RELOAD, {"model": ""}, (CODE.NOT_FOUND, "MODEL_NOT_FOUND")),
        (RELOAD, {"model": "../colours"}, (CODE.NOT_FOUND, "MODEL_NOT_FOUND")),
        (RELOAD, {"model": "colours", "version": 9}, (CODE.NOT_FOUND, "VERSION_NOT_FOUND")),
        (RELOAD, {"model": "colours", "version": 0}, (CODE.NOT_FOUND, "VERSION_NOT_FOUND")),
        (RELOAD, {"model": "colours", "alias": "best"}, (CODE.NOT_FOUND, "ALIAS_NOT_FOUND")),
        (ALIAS, {"model": "birds", "alias": "a", "version": 3}, (CODE.NOT_FOUND, "MODEL_NOT_FOUND")),
        (ALIAS, {"model": "birds", "alias": "a"}, (CODE.NOT_FOUND, "MODEL_NOT_FOUND")),
        (ALIAS, {"model": "colours", "alias": "a", "version": 9}, (CODE.NOT_FOUND, "VERSION_NOT_FOUND")),
        (ALIAS, {"model": "colours", "alias": "", "version": 3}, (CODE.INVALID_ARGUMENT, "ARGUMENT_OUT_OF_RANGE")),
        (ALIAS, {"model": "colours", "alias": "a/b", "version": 3}, (CODE.INVALID_ARGUMENT, "ARGUMENT_OUT_OF_RANGE")),
    ],
)
async def test_what_cannot_be_done(
    serve: Serve, pictures: Pictures, method: str, fields: dict[str, Any], outcome: tuple[grpc.StatusCode, str]
) -> None:
    async with administered(serve) as (client, admin):
        failure = await client.failure(getattr(admin, method)(getattr(admin_pb, f"{method}Request")(**fields)))
        answer = await client.detect(pictures.red)
    assert (failure.code, failure.reason) == outcome
    assert len(answer.detections) == 4


async def test_aliases_that_cannot_be_read_or_written(serve: Serve, repository: Path, pictures: Pictures) -> None:
    path = repository / "colours" / ALIASES_FILE

    async with administered(serve) as (client, admin):
        alias = admin_pb.SetAliasRequest(model="colours", alias="a", version=3)
        path.write_text("[]")
        failures = [
            await client.failure(admin.SetAlias(alias)),
            await client.failure(admin.ReloadModel(admin_pb.ReloadModelRequest(model="colours"))),
        ]
        path.unlink()
        (path.parent / f".{path.name}.partial").mkdir()  # as if the folder could not be written
        failures.append(await client.failure(admin.SetAlias(alias)))
        answer = await client.detect(pictures.red)
    assert {(failure.code, failure.reason) for failure in failures} == {
        (CODE.FAILED_PRECONDITION, "REPOSITORY_UNUSABLE")
    }
    assert not any(str(repository) in failure.message for failure in failures)
    assert answer.model_version == 3


async def test_a_caller_that_gives_up_changes_nothing(
    serve: Serve, repository: Path, new_profile: Callable[..., None], pictures: Pictures, valve: Valve
) -> None:
    new_profile(repository, "accurate", ap=0.7, version=4)
    (repository / "colours" / ALIASES_FILE).write_text('{"serving": 3}')

    async with administered(serve, only_version(4, valve.load)) as (client, admin):
        valve.shut()
        request = admin_pb.ReloadModelRequest(model="colours", version=4)
        late = await client.failure(admin.ReloadModel(request, timeout=0.3))
        busy = await client.failure(admin.ReloadModel(request))
        valve.open()
        await client.until(lambda now: now.sum("damoserve_reloads_total", result="abandoned") == 1)
        before = (await client.detect(pictures.red)).model_version
        after = (await admin.ReloadModel(request)).serving_version
    assert late.code == CODE.DEADLINE_EXCEEDED
    assert busy.reason == "OPERATION_RUNNING"
    assert (before, after) == (3, 4)


async def test_a_server_that_stops_ends_what_runs(
    serve: Serve, repository: Path, new_profile: Callable[..., None], valve: Valve
) -> None:
    new_profile(repository, "accurate", ap=0.7, version=4)
    (repository / "colours" / ALIASES_FILE).write_text('{"serving": 3}')

    async with administered(serve, only_version(4, valve.load)) as (client, admin):
        valve.shut()
        call = admin.ReloadModel(admin_pb.ReloadModelRequest(model="colours", version=4))
        await valve.entered()
        stopping = asyncio.ensure_future(client.application.stop())
        while await client.health() == "SERVING":
            pass
        valve.open()
        failure = await client.failure(call)
        await stopping
    assert failure.code == CODE.UNAVAILABLE


async def test_numbers_that_the_contract_cannot_hold_are_no_versions(
    serve: Serve, repository: Path, new_profile: Callable[..., None], pictures: Pictures
) -> None:
    (repository / "colours" / "20261124120000").mkdir()
    new_profile(repository, "fp32", ap=0.9, name="shapes", version=1)

    async with administered(serve) as (client, admin):
        (repository / "shapes" / ALIASES_FILE).write_text('{"good": 20261124120000}')
        listed = await admin.ListModels(admin_pb.ListModelsRequest())
        versions = {model.model: list(model.versions) for model in listed.models}
        answer = await client.detect(pictures.red)
    assert versions == {"colours": [3], "shapes": [1]}
    assert answer.model_version == 3


async def test_the_only_profile_may_go_and_come(serve: Serve, repository: Path, pictures: Pictures) -> None:
    shutil.rmtree(repository / "colours" / "3" / "quick")

    async with administered(serve) as (client, admin):
        await admin.UnloadProfile(admin_pb.UnloadProfileRequest(profile="accurate"))
        failure = await client.failure(client.detect(pictures.red))
        await admin.LoadProfile(admin_pb.LoadProfileRequest(profile="accurate"))
        answer = await client.detect(pictures.red)
    assert (failure.code, failure.reason) == (CODE.FAILED_PRECONDITION, "PROFILE_UNAVAILABLE")
    assert len(answer.detections) == 4
