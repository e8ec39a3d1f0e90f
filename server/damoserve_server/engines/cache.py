"""A cache on disk of what a GPU's runtime has built: found by what it was built for, checked before it is used."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from damoserve_profiles.files import replace_file
from damoserve_server.engines.engine import EngineError

log = logging.getLogger(__name__)

Identity = Mapping[str, str]
"""All values that a build depends on, by name: if one differs, it is another file."""

Built = TypeVar("Built")

DIGEST_BYTES = hashlib.sha256().digest_size


def digest(identity: Identity) -> str:
    """Returns a name for files and folders that is the same in every process."""
    return hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()[:32]


class EngineCache:
    """A folder of files that each begin with the SHA-256 of the rest. It only saves time: its failures are logged.

    The hash finds damage, not malice: TensorRT runs what it reads, so nobody else may write to the folder.
    """

    def __init__(self, folder: Path | None) -> None:
        """Keeps files in `folder`; nothing is kept for None."""
        self._folder = folder

    def read(self, identity: Identity, kind: str) -> bytes | None:
        """Reads a file of the cache; returns None where there is none, or none that can be used."""
        if self._folder is None or not (path := self._path(self._folder, identity, kind)).exists():
            return None
        try:
            content = path.read_bytes()
        except OSError as error:
            log.warning("%s cannot be read and is built again: %s", path, error)
            return None
        recorded, content = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if recorded != hashlib.sha256(content).digest():
            log.warning("%s is damaged and is built again", path)
            return None
        return content

    def write(self, identity: Identity, kind: str, content: bytes) -> None:
        """Writes a file of the cache; where that fails, the log says so."""
        if self._folder is None:
            return
        path = self._path(self._folder, identity, kind)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(path, lambda partial: partial.write_bytes(hashlib.sha256(content).digest() + content))
        except OSError as error:
            log.warning("%s cannot be written, so the next start builds it again: %s", path, error)

    def restore(self, identity: Identity, load: Callable[[bytes], Built | None], build: Callable[[], bytes]) -> Built:
        """Loads what is kept, or else builds, loads and keeps it; `load` returns None for what it cannot use.

        Raises EngineError where even a new build cannot be loaded.
        """
        kept = self.read(identity, "plan")
        if kept is not None:
            if (loaded := load(kept)) is not None:
                return loaded
            log.warning("the engine that was kept is refused and is built again")
        built = build()
        if (loaded := load(built)) is None:
            raise EngineError("the runtime cannot load what it has built")
        self.write(identity, "plan", built)
        return loaded

    @staticmethod
    def _path(folder: Path, identity: Identity, kind: str) -> Path:
        return folder / f"{digest(identity)}.{kind}"
