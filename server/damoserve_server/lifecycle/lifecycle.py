"""The operations on the models that are served: profiles and versions come and go without a request lost.

It lives on the event loop; files are read and engines built in threads. One operation runs at a time: two would hold up
to four versions of a model in memory.
"""

import asyncio
import logging
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

from damoserve_profiles.repository import ModelSnapshot, Repository
from damoserve_server.errors import OperationRunning, ProfileRefused, RepositoryUnusable, ShuttingDown, VersionRefused
from damoserve_server.metrics.metrics import Metrics
from damoserve_server.models import loading, lookup
from damoserve_server.models.catalogue import ActiveProfile, Catalogue, FailedProfile, IdleProfile, Model, ProfileState
from damoserve_server.models.loading import ProfileLoader

log = logging.getLogger(__name__)

T = TypeVar("T")


class ProfileListener(Protocol):
    """The side that serves requests, which has to hear of profiles that come and go.

    Both methods are called on the event loop, in one step with the change.
    """

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue that requests are served from; it is changed between the two calls."""

    def prepare(self, profiles: Sequence[ActiveProfile]) -> None:
        """Creates what requests of these profiles will need; they serve only afterwards."""

    def retire(self, profiles: Sequence[ActiveProfile]) -> None:
        """Forgets profiles that no new request gets, once the accepted requests are answered."""


class Lifecycle:
    """The operations on what is served, one at a time. Call `close` before the server ends."""

    def __init__(
        self,
        repository: Repository,
        loader: ProfileLoader,
        serving: ProfileListener,
        metrics: Metrics,
        loaded: Mapping[str, ModelSnapshot],
    ) -> None:
        """Takes over what `loader` has loaded; `loaded` has the snapshot of each model from before it was loaded."""
        self.repository = repository
        self.catalogue = serving.catalogue
        self.last_attempts: dict[str, ModelSnapshot | None] = dict(loaded)
        """Snapshot of each model from before it was last loaded, whether or not that went well; None if it was gone."""
        self._loader = loader
        self._serving = serving
        self._metrics = metrics
        self._running: asyncio.Task[Any] | None = None
        self._stop = threading.Event()
        self._closed = False
        for model in self.catalogue.models.values():
            self._show_states(model)

    async def load_profile(self, model: str, profile: str) -> Model:
        """Loads a profile of the version that serves. Raises NotFound, OperationRunning or ProfileRefused."""
        return await self._run_exclusively(partial(self._load_profile, model, profile))

    async def unload_profile(self, model: str, profile: str) -> Model:
        """Stops serving a profile. Raises NotFound or OperationRunning."""
        return await self._run_exclusively(partial(self._unload_profile, model, profile))

    async def reload(self, model: str, target: int | str | None = None, *, whole: bool = False) -> Model:
        """Serves a version, by number or alias; None is the one that the repository wants served.

        Profiles that were unloaded stay so, unless it is to be served as a `whole`.
        Raises NotFound, OperationRunning, RepositoryUnusable or VersionRefused.
        """
        return await self._run_exclusively(partial(self._reload, model, target, whole))

    async def remove(self, model: str) -> None:
        """Serves a model no longer. Raises OperationRunning."""
        await self._run_exclusively(partial(self._remove, model))

    async def set_alias(self, model: str, alias: str, version: int | None) -> None:
        """Names a version in the repository, or takes the name away. Raises NotFound or RepositoryUnusable."""
        await self._run_exclusively(
            lambda _: asyncio.to_thread(lookup.set_alias, self.repository, model, alias, version)
        )

    async def close(self) -> None:
        """Ends the operation that runs, without a change, and takes no other."""
        self._closed = True
        self._stop.set()
        if self._running is not None:
            await asyncio.wait([self._running])

    async def _run_exclusively(self, operation: Callable[[ProfileLoader], Coroutine[Any, Any, T]]) -> T:
        """Runs an operation, unless another runs. Raises OperationRunning or ShuttingDown.

        It outlives a caller that leaves, but only to end without a change.
        """
        if self._closed:
            raise ShuttingDown
        if self._running is not None:
            raise OperationRunning("another operation runs; try again when it has ended")
        self._stop = stop = threading.Event()
        self._running = task = asyncio.create_task(operation(replace(self._loader, stop=stop)))
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            stop.set()
            raise

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running = None
        if not task.cancelled():
            task.exception()  # the caller may have left; looked at, asyncio does not log it

    async def _load_profile(self, model: str, profile: str, loader: ProfileLoader) -> Model:
        before = self.catalogue.model(model)
        if profile in [active.name for active in before.active]:
            return before
        folder = await asyncio.to_thread(lookup.find_folder, self.repository, before, profile)
        manifest = await asyncio.to_thread(loading.manifest_of, folder)
        self._publish(before.with_profile(IdleProfile(folder, manifest, ProfileState.LOADING)))
        try:
            loaded = await _in_thread(loader, loading.load_profile, folder, loader)
        except BaseException:
            self._publish(before)
            raise
        after = before.with_profile(loaded)
        self._publish(after)
        if isinstance(loaded, FailedProfile):
            raise ProfileRefused(loaded.summary, model=before.name, profile=profile)
        return after

    async def _unload_profile(self, model: str, profile: str, _: ProfileLoader) -> Model:
        before = self.catalogue.model(model)
        active = before.find(profile)
        if not isinstance(active, ActiveProfile):
            return before
        folder = self.repository.folder(before.name, before.version, active.name)
        after = before.with_profile(IdleProfile(folder, active.manifest, ProfileState.UNLOADED))
        self._publish(after)
        return after

    async def _reload(self, name: str, target: int | str | None, whole: bool, loader: ProfileLoader) -> Model:
        before = self.catalogue.models.get(name)
        try:
            version = await asyncio.to_thread(lookup.find_version, self.repository, name, target)
        except RepositoryUnusable:
            self._count(name, "refused")
            raise
        snapshot = await asyncio.to_thread(self.repository.snapshot, name)
        if target is None and snapshot is not None and snapshot.version is not None:
            version = snapshot.version  # the version of the attempt that is noted: the aliases may have changed
        folders = await asyncio.to_thread(self.repository.profiles, name, version)
        previous_attempt, self.last_attempts[name] = self.last_attempts.get(name), snapshot
        unloaded = frozenset(() if before is None or whole else (idle.name for idle in before.idle))
        if before is None:
            self._publish(
                Model(name, version, idle=tuple(IdleProfile(folder, None, ProfileState.LOADING) for folder in folders))
            )
        try:
            loaded = Model.of(name, version, await _in_thread(loader, loading.load_version, folders, loader, unloaded))
        except BaseException:
            self._count(name, "abandoned")
            self.last_attempts[name] = previous_attempt
            if before is None:
                self._withdraw(name)
            raise
        damaged = [failed for failed in loaded.failed if not failed.unsuited]
        if damaged or not (loaded.active or loaded.idle):
            self._refuse(before, loaded)
        self._publish(loaded)
        self._count(name, "switched")
        log.info("%s version %d serves", name, version)
        return loaded

    def _refuse(self, before: Model | None, loaded: Model) -> None:
        """Shows in the catalogue what is wrong with a version, then raises VersionRefused."""
        if before is None or not before.active:
            self._publish(Model(loaded.name, loaded.version, failed=loaded.failed))
            still = "it serves no other"
        else:
            self._publish(replace(before, refused=loaded.failed))
            still = f"version {before.version} keeps serving"
        self._count(loaded.name, "refused")
        why = "; ".join(failed.summary for failed in loaded.failed) or "it has no profile"
        message = f"version {loaded.version} of the model {loaded.name} is not served, {still}: {why}"
        log.error("%s", message)
        raise VersionRefused(message, model=loaded.name, version=loaded.version)

    async def _remove(self, name: str, _: ProfileLoader) -> None:
        self.last_attempts[name] = None
        if name in self.catalogue.models:
            self._withdraw(name)
            self._count(name, "removed")
            log.warning("the model %s is served no longer: it is gone from the repository", name)

    def _publish(self, model: Model) -> None:
        """Puts a model in place of the one of its name: one step of the event loop."""
        replaced = self.catalogue.models.get(model.name)
        before = replaced.active if replaced is not None else ()
        self._serving.prepare([profile for profile in model.active if profile not in before])
        self.catalogue.put(model)
        self._show_states(model)
        self._retire([profile for profile in before if profile not in model.active])

    def _withdraw(self, name: str) -> None:
        model = self.catalogue.models[name]
        self.catalogue.remove(name)
        self._metrics.models.show_states(name, {})
        self._retire(model.active)

    def _retire(self, profiles: Sequence[ActiveProfile]) -> None:
        self._serving.retire(profiles)
        loop = asyncio.get_running_loop()
        for profile in profiles:
            where = "/".join((*profile.key, str(profile.manifest.version)))
            weakref.finalize(profile, _log_and_free, loop, where).atexit = False

    def _show_states(self, model: Model) -> None:
        self._metrics.models.show_states(model.name, {profile.name: profile.state for profile in model.profiles})

    def _count(self, model: str, result: str) -> None:
        self._metrics.models.reloads.labels(model, result).inc()


async def _in_thread(loader: ProfileLoader, work: Callable[..., T], *arguments: object) -> T:
    """Returns what `work` does in a thread. Raises ShuttingDown when nobody wants the result any more."""
    result = await asyncio.to_thread(work, *arguments)
    if loader.stop.is_set():
        raise ShuttingDown
    return result


def _log_and_free(loop: asyncio.AbstractEventLoop, where: str) -> None:
    """Logs that a profile is freed, and returns its memory. Runs in whichever thread drops the last reference."""
    log.info("%s is freed", where)
    if not loop.is_closed():
        loop.call_soon_threadsafe(threading.Thread(target=loading.give_memory_back, daemon=True).start)
