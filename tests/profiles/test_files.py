"""Where the bundled models are looked for: in a source tree, in an install, and where nobody installed them."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from damoserve_profiles import files


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that was imported from elsewhere, without `damoserve_models`."""
    folder = tmp_path / "damoserve_profiles"
    folder.mkdir()
    monkeypatch.setattr(files, "PACKAGE", folder)
    monkeypatch.setitem(sys.modules, "damoserve_models", None)
    return folder


def install_models(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    module = ModuleType("damoserve_models")
    module.REPOSITORY = folder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "damoserve_models", module)


def test_a_source_tree_has_its_own(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "repository").mkdir()
    install_models(monkeypatch, tmp_path / "installed")
    assert files.bundled_models() == tmp_path / "repository"


def test_an_install_has_those_of_the_other_distribution(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (package / "recipes").mkdir()
    (tmp_path / "repository").mkdir()  # of some other package
    install_models(monkeypatch, tmp_path / "installed")
    assert files.bundled_models() == tmp_path / "installed"


def test_a_source_tree_without_models_takes_the_installed(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_models(monkeypatch, tmp_path / "installed")
    assert files.bundled_models() == tmp_path / "installed"


def test_where_they_are_not_installed_the_folder_is_missing(package: Path, tmp_path: Path) -> None:
    (package / "recipes").mkdir()
    assert files.bundled_models() == tmp_path / "damoserve_models" / "repository"
    assert not files.bundled_models().exists()
