"""The repository of models on disk: `<model>/<version>/<profile>/{model.onnx, manifest.json}`.

RepositoryError
├── ManifestInvalid    the manifest is missing, unreadable or not of a known schema
└── FileMismatch       a file is missing, or its bytes are not those that the manifest promises
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from damoserve_profiles.files import bundled, replace_text
from damoserve_profiles.manifest import MANIFEST_FILE, MODEL_FILE, FileRecord, Manifest

BUNDLED = bundled("repository")


class RepositoryError(Exception):
    """Something in the repository cannot be used; the message says what to do."""


class ManifestInvalid(RepositoryError):
    """The manifest cannot be read."""


class FileMismatch(RepositoryError):
    """A file is not the one that was built."""


@dataclass(frozen=True)
class ProfileFolder:
    """Where one profile lies: `<root>/<model>/<version>/<profile>`."""

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
        """The manifest, its files not yet checked. Raises ManifestInvalid."""
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
        """The manifest, after comparing every file with the hash it promises. Raises RepositoryError."""
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


def describe_file(path: Path) -> FileRecord:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return FileRecord(bytes=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class Repository:
    """A folder of models."""

    root: Path

    def folder(self, model: str, version: int, profile: str) -> ProfileFolder:
        return ProfileFolder(self.root / model / str(version) / profile)

    def models(self) -> list[str]:
        """Names of the models that have at least one version."""
        return sorted(path.name for path in _folders(self.root) if self.versions(path.name))

    def versions(self, model: str) -> list[int]:
        """Versions of a model, oldest first; folders whose name is not a number are ignored."""
        return sorted(int(path.name) for path in _folders(self.root / model) if path.name.isdecimal())

    def profiles(self, model: str, version: int) -> list[ProfileFolder]:
        """Profiles of a version, by name."""
        return [ProfileFolder(path) for path in sorted(_folders(self.root / model / str(version)))]


def _folders(path: Path) -> Iterator[Path]:
    """Sub-folders; a name with a leading dot is work in progress."""
    if path.is_dir():
        yield from (child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
