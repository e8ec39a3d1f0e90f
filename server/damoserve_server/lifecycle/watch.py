"""The watch of the repository: new versions, changed files, new models, models that are gone."""

import asyncio
import logging
from collections.abc import Mapping

from damoserve_profiles.repository import ModelSnapshot, Repository
from damoserve_server.errors import DamoserveError, OperationRunning
from damoserve_server.lifecycle.lifecycle import Lifecycle

log = logging.getLogger(__name__)


class Watcher:
    """Takes snapshots of the repository every `seconds`, and loads what has changed.

    A model is loaded when its snapshot differs from that of the last attempt to load it, and is the same as the one
    before: what is still being copied is left alone. So a version that was refused is loaded again once its files
    change.
    """

    def __init__(self, lifecycle: Lifecycle, seconds: float) -> None:
        self._lifecycle = lifecycle
        self._seconds = seconds
        self._previous: Mapping[str, ModelSnapshot | None] = dict(lifecycle.last_attempts)

    async def run(self) -> None:
        """Watches until it is cancelled."""
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self._check()
            except Exception:  # a disk that fails now may answer later
                log.exception("the repository could not be looked at")

    async def _check(self) -> None:
        snapshots = await asyncio.to_thread(take_snapshots, self._lifecycle.repository)
        if snapshots is None:
            log.warning("the repository %s is gone; what was loaded is served still", self._lifecycle.repository.root)
            return
        last_attempts = self._lifecycle.last_attempts
        for name in sorted(snapshots.keys() | last_attempts.keys()):
            snapshot = snapshots.get(name)
            if snapshot != last_attempts.get(name) and snapshot == self._previous.get(name):
                await self._follow(name, snapshot)
        self._previous = snapshots

    async def _follow(self, name: str, snapshot: ModelSnapshot | None) -> None:
        try:
            await (self._lifecycle.remove(name) if snapshot is None else self._lifecycle.reload(name))
        except OperationRunning:
            log.debug("%s has changed; it is loaded when the operation that runs has ended", name)
        except DamoserveError as error:
            self._lifecycle.last_attempts[name] = snapshot
            log.error("%s has changed, and is not loaded: %s", name, error)


def take_snapshots(repository: Repository) -> dict[str, ModelSnapshot] | None:
    """Takes a snapshot of every model; returns None if the folder itself is not there."""
    if not repository.root.is_dir():
        return None
    snapshots = {name: repository.snapshot(name) for name in repository.models()}
    return {name: snapshot for name, snapshot in snapshots.items() if snapshot is not None}
