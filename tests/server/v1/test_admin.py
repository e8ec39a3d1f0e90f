"""The admin service: what each call does, and every way it can fail."""

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2

from damoserve.v1 import admin_pb2 as admin_pb
from damoserve.v1 import detection_pb2 as pb
from damoserve_profiles.repository import ALIASES_FILE, SERVING
from damoserve_server.lifecycle import lifecycle
from damoserve_server.models.catalogue import CatalogueError
from tests.support.administration import FRENCH, administered, only_version
from tests.support.pictures import Pictures
from tests.support.server import MakeApplication, Serve, ServerClient
from tests.support.valve import Valve

CODE = grpc.StatusCode


def run(serve: Serve, scenario, *arguments, **settings):
    async def whole():
        async with administered(serve, *arguments, **settings) as (client, admin):
            return await scenario(client, admin)

    return asyncio.run(whole())


async def test_it_is_off_by_default(serve: Serve) -> None:
    async with serve() as client:
        result = client.application.admin_port
    assert result == 0


def test_unloaded_and_loaded_again(serve: Serve, pictures: Pictures) -> None:
    async def scenario(client: ServerClient, admin):
        request = {"model": "colours", "profile": "accurate"}
        states = [(await admin.UnloadProfile(admin_pb.UnloadProfileRequest(**request))).state for _ in range(2)]
        refused = await client.failure(client.detect(pictures.red, profile="accurate"))
        other = (await client.detect(pictures.red)).profile
        metrics = await client.metrics()
        states += [(await admin.LoadProfile(admin_pb.LoadProfileRequest(**request))).state for _ in range(2)]
        return states, refused, other, metrics, (await client.detect(pictures.red, profile="accurate")).profile

    states, refused, other, metrics, again = run(serve, scenario)
    assert states == [pb.Profile.STATE_UNLOADED] * 2 + [pb.Profile.STATE_ACTIVE] * 2
    assert (refused.code, refused.reason) == (CODE.FAILED_PRECONDITION, "PROFILE_UNAVAILABLE")
    assert refused.message == "the profile accurate of the model colours was unloaded"
    assert (other, again) == ("quick", "accurate")
    assert metrics.sum("damoserve_profile_state", profile="accurate", state="unloaded") == 1
    assert metrics.sum("damoserve_profile_state", profile="accurate", state="active") == 0


def test_a_profile_that_is_being_loaded_says_when_to_try_again(serve: Serve, pictures: Pictures, valve: Valve) -> None:
    async def scenario(client: ServerClient, admin):
        await admin.UnloadProfile(admin_pb.UnloadProfileRequest(profile="accurate"))
        valve.shut()
        loading = admin.LoadProfile(admin_pb.LoadProfileRequest(profile="accurate"))
        await valve.entered()
        listed = await client.profiles.GetProfile(pb.GetProfileRequest(profile="accurate"))
        early = await client.failure(client.detect(pictures.red, profile="accurate"))
        busy = await client.failure(admin.UnloadProfile(admin_pb.UnloadProfileRequest(profile="quick")))
        valve.open()
        await loading
        return listed.state, early, busy, (await client.detect(pictures.red, profile="accurate")).profile

    state, early, busy, profile = run(serve, scenario, valve.load)
    assert (state, profile) == (pb.Profile.STATE_LOADING, "accurate")
    assert (early.code, early.reason) == (CODE.UNAVAILABLE, "PROFILE_LOADING")
    assert early.detail(error_details_pb2.RetryInfo).retry_delay.seconds == 1
    assert (busy.code, busy.reason) == (CODE.ABORTED, "OPERATION_RUNNING")
    assert busy.detail(error_details_pb2.RetryInfo).retry_delay.seconds == 1


def test_a_damaged_profile_is_not_loaded_again(serve: Serve, repository: Path, pictures: Pictures) -> None:
    async def scenario(client: ServerClient, admin):
        await admin.UnloadProfile(admin_pb.UnloadProfileRequest(profile="accurate"))
        (repository / "colours" / "3" / "accurate" / "model.onnx").write_bytes(b"no model")
        failure = await client.failure(admin.LoadProfile(admin_pb.LoadProfileRequest(profile="accurate")))
        listed = await client.profiles.GetProfile(pb.GetProfileRequest(profile="accurate"))
        return failure, listed, (await client.detect(pictures.red)).profile

    failure, listed, profile = run(serve, scenario)
    assert (failure.code, failure.reason) == (CODE.FAILED_PRECONDITION, "PROFILE_REFUSED")
    assert failure.message == listed.error
    assert str(repository) not in failure.message
    assert (listed.state, profile) == (pb.Profile.STATE_FAILED, "quick")


async def unloaded_when_free(client: ServerClient, admin):
    """Unloads `accurate` once no other operation runs. What is not active is left as it is: the answer tells."""
    request = admin_pb.UnloadProfileRequest(profile="accurate")
    call = admin.UnloadProfile(request)
    while await call.code() == CODE.ABORTED:
        call = admin.UnloadProfile(request)
    return await call


def test_a_profile_whose_loading_is_given_up_is_unloaded_as_before(
    serve: Serve, pictures: Pictures, valve: Valve
) -> None:
    async def scenario(client: ServerClient, admin):
        await admin.UnloadProfile(admin_pb.UnloadProfileRequest(profile="accurate"))
        valve.shut()
        loading = admin.LoadProfile(admin_pb.LoadProfileRequest(profile="accurate"))
        await valve.entered()
        loading.cancel()
        valve.open()
        state = (await unloaded_when_free(client, admin)).state
        metrics = await client.metrics()
        again = await admin.LoadProfile(admin_pb.LoadProfileRequest(profile="accurate"))
        return state, metrics, again.state

    state, metrics, again = run(serve, scenario, valve.load)
    assert (state, again) == (pb.Profile.STATE_UNLOADED, pb.Profile.STATE_ACTIVE)
    assert metrics.sum("damoserve_profile_state", profile="accurate", state="unloaded") == 1
    assert metrics.sum("damoserve_profile_state", profile="accurate", state="loading") == 0


def test_a_profile_whose_loading_breaks_is_unloaded_as_before(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the server's own: what is wrong with a profile is told instead."""

    def load(*_):
        raise MemoryError

    async def scenario(client: ServerClient, admin):
        await admin.UnloadProfile(admin_pb.UnloadProfileRequest(profile="accurate"))
        with monkeypatch.context() as patch:
            patch.setattr(lifecycle, "load_profile", load)
            failure = await client.failure(admin.LoadProfile(admin_pb.LoadProfileRequest(profile="accurate")))
        return failure, (await client.profiles.GetProfile(pb.GetProfileRequest(profile="accurate"))).state

    failure, state = run(serve, scenario)
    assert (failure.code, failure.reason) == (CODE.INTERNAL, "INTERNAL")
    assert state == pb.Profile.STATE_UNLOADED


def test_rollback_by_alias(
    serve: Serve, repository: Path, new_profile: Callable[..., None], pictures: Pictures
) -> None:
    new_profile(repository, "accurate", ap=0.7, version=4, labels=FRENCH)

    async def scenario(client: ServerClient, admin):
        versions = []

        async def reload(**target):
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
        return versions, status, removed

    versions, status, removed = run(serve, scenario)
    assert versions == [(3, "red"), (4, "rouge"), (3, "red"), (4, "rouge")]
    assert (status.model, status.serving_version, list(status.versions)) == ("colours", 3, [3, 4])
    assert status.aliases == {"stable": 4, "serving": 3}
    assert [profile.profile for profile in status.profiles] == ["accurate", "quick"]
    assert removed.aliases == {"stable": 4}


def test_the_alias_decides_at_the_start(
    serve: Serve, repository: Path, new_profile: Callable[..., None], pictures: Pictures
) -> None:
    new_profile(repository, "accurate", ap=0.7, version=4)
    (repository / "colours" / ALIASES_FILE).write_text('{"serving": 3}')

    async def scenario(client: ServerClient, _):
        return (await client.detect(pictures.red)).model_version

    assert run(serve, scenario) == 3


def test_a_taken_port_is_an_error_and_leaves_no_worker(serve: Serve, application: MakeApplication) -> None:
    def workers():
        return {thread for thread in threading.enumerate() if thread.name.startswith("worker-")}

    async def scenario(client: ServerClient, _):
        before = workers()
        with pytest.raises(OSError, match="cannot listen on"):
            async with application(admin_port=client.application.admin_port):
                pass
        assert workers() == before

    run(serve, scenario)


def test_the_only_model_needs_aliases_that_can_be_read(application: MakeApplication, repository: Path) -> None:
    (repository / "colours" / ALIASES_FILE).write_text('{"serving": 5}')

    async def scenario():
        async with application():
            pass

    with pytest.raises(CatalogueError, match="wants version 5 served, which is not there"):
        asyncio.run(scenario())


def test_a_model_comes_while_others_serve(
    serve: Serve, repository: Path, new_profile: Callable[..., None], pictures: Pictures
) -> None:
    async def scenario(client: ServerClient, admin):
        absent = await client.failure(client.detect(pictures.red, model="birds"))
        new_profile(repository, "only", ap=0.1, name="birds")
        [before, _] = (await admin.ListModels(admin_pb.ListModelsRequest())).models
        await admin.ReloadModel(admin_pb.ReloadModelRequest(model="birds"))
        await client.detect(pictures.red, model="birds")
        default = (await client.detect(pictures.red)).model
        return absent.reason, before, default, await client.metrics()

    reason, before, default, metrics = run(serve, scenario)
    assert (reason, default) == ("MODEL_NOT_FOUND", "colours")
    assert (before.model, before.serving_version, list(before.versions)) == ("birds", 0, [3])
    assert metrics.sum("damoserve_reloads_total", model="birds", result="switched") == 1
    assert metrics.sum("damoserve_stage_seconds_count", model="birds", stage="inference") == 1


def test_what_was_unloaded_stays_so_in_the_next_version(
    serve: Serve, repository: Path, new_profile: Callable[..., None]
) -> None:
    for profile in ("accurate", "quick"):
        new_profile(repository, profile, ap=0.5, version=4)

    async def scenario(client: ServerClient, admin):
        await admin.ReloadModel(admin_pb.ReloadModelRequest(model="colours", version=3))
        await admin.UnloadProfile(admin_pb.UnloadProfileRequest(profile="accurate"))
        status = await admin.ReloadModel(admin_pb.ReloadModelRequest(model="colours"))
        await admin.LoadProfile(admin_pb.LoadProfileRequest(profile="accurate"))
        listed = await client.profiles.ListProfiles(pb.ListProfilesRequest())
        return [(p.profile, p.state) for p in status.profiles], [(p.model_version, p.state) for p in listed.profiles]

    before, after = run(serve, scenario)
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
def test_what_cannot_be_done(serve: Serve, pictures: Pictures, method, fields, outcome) -> None:
    async def scenario(client: ServerClient, admin):
        failure = await client.failure(getattr(admin, method)(getattr(admin_pb, f"{method}Request")(**fields)))
        return failure, await client.detect(pictures.red)

    failure, answer = run(serve, scenario)
    assert (failure.code, failure.reason) == outcome
    assert len(answer.detections) == 4


def test_aliases_that_cannot_be_read_or_written(serve: Serve, repository: Path, pictures: Pictures) -> None:
    path = repository / "colours" / ALIASES_FILE

    async def scenario(client: ServerClient, admin):
        alias = admin_pb.SetAliasRequest(model="colours", alias="a", version=3)
        path.write_text("[]")
        failures = [
            await client.failure(admin.SetAlias(alias)),
            await client.failure(admin.ReloadModel(admin_pb.ReloadModelRequest(model="colours"))),
        ]
        path.unlink()
        (path.parent / f".{path.name}.partial").mkdir()  # as if the folder could not be written
        failures.append(await client.failure(admin.SetAlias(alias)))
        return failures, await client.detect(pictures.red)

    failures, answer = run(serve, scenario)
    assert {(failure.code, failure.reason) for failure in failures} == {
        (CODE.FAILED_PRECONDITION, "REPOSITORY_UNUSABLE")
    }
    assert not any(str(repository) in failure.message for failure in failures)
    assert answer.model_version == 3


def test_a_caller_that_gives_up_changes_nothing(
    serve: Serve, repository: Path, new_profile: Callable[..., None], pictures: Pictures, valve: Valve
) -> None:
    new_profile(repository, "accurate", ap=0.7, version=4)
    (repository / "colours" / ALIASES_FILE).write_text('{"serving": 3}')

    async def scenario(client: ServerClient, admin):
        valve.shut()
        request = admin_pb.ReloadModelRequest(model="colours", version=4)
        late = await client.failure(admin.ReloadModel(request, timeout=0.3))
        busy = await client.failure(admin.ReloadModel(request))
        valve.open()
        await client.until(lambda now: now.sum("damoserve_reloads_total", result="abandoned") == 1)
        before = await client.detect(pictures.red)
        status = await admin.ReloadModel(request)
        return late, busy, before.model_version, status.serving_version

    late, busy, before, after = run(serve, scenario, only_version(4, valve.load))
    assert late.code == CODE.DEADLINE_EXCEEDED
    assert busy.reason == "OPERATION_RUNNING"
    assert (before, after) == (3, 4)


def test_a_server_that_stops_ends_what_runs(
    serve: Serve, repository: Path, new_profile: Callable[..., None], valve: Valve
) -> None:
    new_profile(repository, "accurate", ap=0.7, version=4)
    (repository / "colours" / ALIASES_FILE).write_text('{"serving": 3}')

    async def scenario(client: ServerClient, admin):
        valve.shut()
        call = admin.ReloadModel(admin_pb.ReloadModelRequest(model="colours", version=4))
        await valve.entered()
        stopping = asyncio.ensure_future(client.application.stop())
        while await client.health() == "SERVING":
            pass
        valve.open()
        failure = await client.failure(call)
        await stopping
        return failure

    assert run(serve, scenario, only_version(4, valve.load)).code == CODE.UNAVAILABLE


def test_numbers_that_the_contract_cannot_hold_are_no_versions(
    serve: Serve, repository: Path, new_profile: Callable[..., None], pictures: Pictures
) -> None:
    (repository / "colours" / "20261124120000").mkdir()
    new_profile(repository, "fp32", ap=0.9, name="shapes", version=1)

    async def scenario(client: ServerClient, admin):
        (repository / "shapes" / ALIASES_FILE).write_text('{"good": 20261124120000}')
        listed = await admin.ListModels(admin_pb.ListModelsRequest())
        return {model.model: list(model.versions) for model in listed.models}, await client.detect(pictures.red)

    versions, answer = run(serve, scenario)
    assert versions == {"colours": [3], "shapes": [1]}
    assert answer.model_version == 3


def test_the_only_profile_may_go_and_come(serve: Serve, repository: Path, pictures: Pictures) -> None:
    shutil.rmtree(repository / "colours" / "3" / "quick")

    async def scenario(client: ServerClient, admin):
        await admin.UnloadProfile(admin_pb.UnloadProfileRequest(profile="accurate"))
        failure = await client.failure(client.detect(pictures.red))
        await admin.LoadProfile(admin_pb.LoadProfileRequest(profile="accurate"))
        return failure, await client.detect(pictures.red)

    failure, answer = run(serve, scenario)
    assert (failure.code, failure.reason) == (CODE.FAILED_PRECONDITION, "PROFILE_UNAVAILABLE")
    assert len(answer.detections) == 4
