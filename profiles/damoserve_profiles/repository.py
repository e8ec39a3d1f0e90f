"""The repository of models on disk: `<model>/<version>/<profile>/{model.onnx, manifest.json}`.

Beside the versions, `aliases.json` may give names to some of them; the one named `serving` is served instead of the
newest.

RepositoryError
├── ManifestInvalid    the manifest is missing, unreadable or not of a known schema
├── FileMismatch       a file is missing, or its bytes are not those that the manifest promises
└── AliasesInvalid     the aliases are unreadable, or `serving` names a version that is not there
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from damoserve_profiles.files import bundled_models, replace_text
from damoserve_profiles.manifest import (
    MANIFEST_FILE,
    MAX_VERSION,
    MODEL_FILE,
    FileName,
    FileRecord,
    Manifest,
    Version,
)

BUNDLED = bundled_models()
"""The default repository; a folder that is not there where the bundled models are not installed."""
ALIASES_FILE = "aliases.json"
SERVING = "serving"

_ALIASES = TypeAdapter(dict[FileName, Version])


class RepositoryError(Exception):
    """Raised when something in the repository cannot be used; the message says what to do."""


class ManifestInvalid(RepositoryError):
    """Raised when a manifest cannot be read."""


class FileMismatch(RepositoryError):
    """Raised when a file is not the one that was built."""


class AliasesInvalid(RepositoryError):
    """Raised when it is not known which version is to be served."""


@dataclass(frozen=True)
class ProfileFolder:
    """The folder of one profile: `<root>/<model>/<version>/<profile>`."""

    path: Path

    @property
    def profile(self) -> str:
        return self.path.name

    @property
    def version(self) -> int:
        return int(self.path.parent.name)

    @property
    def model(self) -> str:
        return self.path.parent.parent.name

    @property
    def model_path(self) -> Path:
        return self.path / MODEL_FILE

    def read_manifest(self) -> Manifest:
        """Reads the manifest, without checking the other files. Raises ManifestInvalid."""
        path = self.path / MANIFEST_FILE
        try:
            manifest = Manifest.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise ManifestInvalid(f"{path} is not a valid manifest; build the profile again: {error}") from error
        if (manifest.model, manifest.version, manifest.profile) != (self.model, self.version, self.profile):
            raise ManifestInvalid(f"{path} describes another profile: {manifest.model}/{manifest.profile}")
        if MODEL_FILE not in manifest.files:
            raise ManifestInvalid(f"{path} does not list {MODEL_FILE}; build the profile again")
        return manifest

    def verify(self) -> Manifest:
        """Compares every file with the hash in the manifest, which it returns. Raises RepositoryError."""
        manifest = self.read_manifest()
        for name, promised in manifest.files.items():
            path = self.path / name
            if not path.is_file():
                raise FileMismatch(f"{path} is missing; build or copy the profile again")
            if describe_file(path) != promised:
                raise FileMismatch(f"{path} differs from its manifest (SHA-256); build or copy the profile again")
        return manifest

    def write(self, manifest: Manifest) -> None:
        """Writes the manifest last, so that an interrupted build never looks complete."""
        replace_text(self.path / MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")


def missing_bundle(root: Path) -> str | None:
    """Says what to install if a repository that is not there is the default one; None if it is another."""
    if root != BUNDLED:
        return None
    return (
        "the bundled models are not installed: pip install damoserve-models (in a clone: pip install ./profiles), "
        "or name a folder of models of your own with --repository"
    )


def describe_file(path: Path) -> FileRecord:
    """Returns the size and the SHA-256 of a file."""
    with path.open("rb") as file:
        return FileRecord(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class ModelSnapshot:
    """The state of a model that can be seen without reading its files: if two are equal, nothing has changed."""

    version: int | None
    """Version to be served; None if the aliases are invalid."""
    files: frozenset[tuple[str, int, int]]
    """Path, size and time of the last change of each file of that version."""


@dataclass(frozen=True)
class Repository:
    """A folder of models."""

    root: Path

    def folder(self, model: str, version: int, profile: str) -> ProfileFolder:
        """Returns the folder of a profile, whether or not it exists."""
        return ProfileFolder(self.root / model / str(version) / profile)

    def models(self) -> list[str]:
        """Lists the names of the models that have at least one version."""
        return sorted(path.name for path in _folders(self.root) if self.versions(path.name))

    def versions(self, model: str) -> list[int]:
        """Lists the versions of a model, oldest first: folders whose name is a number from 1 to `MAX_VERSION`."""
        numbers = {int(path.name) for path in _folders(self.root / model) if path.name.isdecimal()}
        return sorted(number for number in numbers if 0 < number <= MAX_VERSION)

    def profiles(self, model: str, version: int) -> list[ProfileFolder]:
        """Lists the folders of a version's profiles, by name."""
        return [ProfileFolder(path) for path in sorted(_folders(self.root / model / str(version)))]

    def aliases(self, model: str) -> Mapping[str, int]:
        """Reads the names of versions. Raises AliasesInvalid."""
        path = self.root / model / ALIASES_FILE
        try:
            return _ALIASES.validate_json(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            raise AliasesInvalid(f"{path} does not map names to versions: {error}") from error

    def set_alias(self, model: str, alias: str, version: int | None) -> None:
        """Gives a name to a version, or takes it away. Raises AliasesInvalid, and OSError if it cannot be written."""
        others = {name: number for name, number in self.aliases(model).items() if name != alias}
        aliases = others if version is None else others | {alias: version}
        replace_text(self.root / model / ALIASES_FILE, json.dumps(dict(sorted(aliases.items())), indent=2) + "\n")

    def serving(self, model: str) -> int:
        """Returns the version to be served: the one named `serving`, else the newest. Raises AliasesInvalid."""
        versions, named = self.versions(model), self.aliases(model).get(SERVING)
        if named is not None and named not in versions:
            raise AliasesInvalid(f"{self.root / model / ALIASES_FILE} wants version {named} served, which is not there")
        return versions[-1] if named is None else named

    def snapshot(self, model: str) -> ModelSnapshot | None:
        """Takes a snapshot of a model; returns None when it has no version."""
        if not self.versions(model):
            return None
        try:
            version = self.serving(model)
        except AliasesInvalid:
            return ModelSnapshot(None, frozenset())
        files = {}
        for folder in self.profiles(model, version):
            for path in folder.path.iterdir():
                with suppress(FileNotFoundError):  # just being replaced: it will look different the next time
                    files[path] = path.stat()
        return ModelSnapshot(
            version, frozenset((str(path), status.st_size, status.st_mtime_ns) for path, status in files.items())
        )


def _folders(path: Path) -> Iterator[Path]:
    """Yields the sub-folders; a name with a leading dot is work in progress."""
    if path.is_dir():
        yield from (child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
