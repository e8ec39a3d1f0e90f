"""What a GPU's runtime has built, kept on disk: found by what it was built for, checked before it is used."""

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
"""All that what was built depends on. Another value of any of it is another file."""

Built = TypeVar("Built")

DIGEST_BYTES = hashlib.sha256().digest_size


def digest(identity: Identity) -> str:
    """A name for files and folders, the same in every process."""
    return hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()[:32]


class EngineCache:
    """A folder of files that each begin with the SHA-256 of the rest. It only saves time: its failures are logged.

    The hash finds damage, not malice: TensorRT runs what it reads, so nobody else may write to the folder.
    """

    def __init__(self, folder: Path | None) -> None:
        """None keeps nothing."""
        self._folder = folder

    def read(self, identity: Identity, kind: str) -> bytes | None:
        """None where there is nothing, or nothing that can be used."""
        if self._folder is None or not (path := self._path(self._folder, identity, kind)).exists():
            return None
        try:
            content = path.read_bytes()
        except OSError as error:
            log.warning("%s cannot be read and is built again: %s", path, error)
            return None
        found, content = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if found != hashlib.sha256(content).digest():
            log.warning("%s is damaged and is built again", path)
            return None
        return content

    def write(self, identity: Identity, kind: str, content: bytes) -> None:
        if self._folder is None:
            return
        path = self._path(self._folder, identity, kind)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(path, lambda partial: partial.write_bytes(hashlib.sha256(content).digest() + content))
        except OSError as error:
            log.warning("%s cannot be written, so the next start builds it again: %s", path, error)

    def restore(self, identity: Identity, load: Callable[[bytes], Built | None], build: Callable[[], bytes]) -> Built:
        """What is kept, or else what is built and then kept; `load` gives None for what it cannot use.

        Raises EngineError where what was just built is of no use either.
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
