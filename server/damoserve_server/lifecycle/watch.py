"""Follows the repository: new versions, changed files, new models, models that are gone."""

import asyncio
import logging
from collections.abc import Mapping

from damoserve_profiles.repository import ModelSnapshot, Repository
from damoserve_server.errors import DamoserveError, OperationRunning
from damoserve_server.lifecycle.lifecycle import Lifecycle

log = logging.getLogger(__name__)


class Watcher:
    """Looks every so many seconds, in a thread.

    A model is loaded when it looks other than when it was last loaded, and just as it did at the last look: what is
    still being copied is left alone. So a version that was refused is tried again once its files change.
    """

    def __init__(self, lifecycle: Lifecycle, seconds: float) -> None:
        self._lifecycle = lifecycle
        self._seconds = seconds
        self._before: Mapping[str, ModelSnapshot | None] = dict(lifecycle.tried)

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self._check()
            except Exception:  # a disk that fails now may answer later
                log.exception("the repository could not be looked at")

    async def _check(self) -> None:
        seen = await asyncio.to_thread(take_snapshots, self._lifecycle.repository)
        if seen is None:
            log.warning("the repository %s is gone; what was loaded is served still", self._lifecycle.repository.root)
            return
        tried = self._lifecycle.tried
        for name in sorted(seen.keys() | tried.keys()):
            snapshot = seen.get(name)
            if snapshot != tried.get(name) and snapshot == self._before.get(name):
                await self._follow(name, snapshot)
        self._before = seen

    async def _follow(self, name: str, snapshot: ModelSnapshot | None) -> None:
        try:
            await (self._lifecycle.remove(name) if snapshot is None else self._lifecycle.reload(name))
        except OperationRunning:
            log.debug("%s has changed; it is loaded when the operation that runs has ended", name)
        except DamoserveError as error:
            self._lifecycle.tried[name] = snapshot
            log.error("%s has changed, and is not loaded: %s", name, error)


def take_snapshots(repository: Repository) -> dict[str, ModelSnapshot] | None:
    """How every model looks; None if the folder itself is not there."""
    if not repository.root.is_dir():
        return None
    snapshots = {name: repository.snapshot(name) for name in repository.models()}
    return {name: snapshot for name, snapshot in snapshots.items() if snapshot is not None}
