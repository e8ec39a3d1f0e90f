"""The distributions, built as for a package index: what is in them, what they say of themselves, how large they are.

`make check-wheel` installs them.
"""

import re
import tarfile
import zipfile
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from functools import cached_property
from pathlib import Path

import pytest

from damoserve_profiles.repository import BUNDLED
from tests.support.distributions import ROOT, build

MODEL_SUFFIXES = {".onnx", ".safetensors", ".pth", ".pt", ".png"}
LIGHT = {"googleapis-common-protos", "grpcio", "grpcio-status", "pillow", "protobuf", "rich", "typer"}


@dataclass(frozen=True)
class Wheel:
    path: Path

    @cached_property
    def names(self) -> set[str]:
        with zipfile.ZipFile(self.path) as file:
            return set(file.namelist())

    @cached_property
    def metadata(self) -> Message:
        return message_from_bytes(self.read(r".*\.dist-info/METADATA"))

    def fields(self, name: str) -> list[str]:
        """The values of a field of the metadata that may be repeated."""
        return list(self.metadata.get_all(name, []))

    def read(self, pattern: str) -> bytes:
        (name,) = [name for name in self.names if re.fullmatch(pattern, name)]
        with zipfile.ZipFile(self.path) as file:
            return file.read(name)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    return Wheel(build(ROOT, "wheel", tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    return Wheel(build(ROOT / "profiles", "wheel", tmp_path_factory.mktemp("models")))


def in_tree(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in paths}


def test_the_base_is_small_and_has_no_model(base: Wheel) -> None:
    assert base.path.stat().st_size < 1_000_000
    assert [name for name in base.names if Path(name).suffix in MODEL_SUFFIXES] == []
    assert [name for name in base.names if name.endswith("manifest.json")] == []


def test_the_base_has_every_file_of_its_packages_and_what_lies_beside_them(base: Wheel) -> None:
    roots = ("proto", "profiles", "server", "compress", "clients/python")
    packages = {path.name: path for root in roots for path in (ROOT / root).glob("damoserve*") if path.is_dir()}
    del packages["damoserve_models"]
    expected = {f"{name}/{file}" for name, folder in packages.items() for file in in_tree(folder)}
    expected |= {f"damoserve_profiles/recipes/{file}" for file in in_tree(ROOT / "profiles" / "recipes")}
    expected |= {"damoserve_client/smear.jpg"}
    assert {name for name in base.names if ".dist-info/" not in name} == expected


def test_the_base_says_what_an_index_shows(base: Wheel) -> None:
    assert (base.metadata["Name"], base.metadata["License-Expression"]) == ("damoserve", "Apache-2.0")
    assert base.metadata["Requires-Python"] == ">=3.11"
    minors = [re.search(r"Python :: 3\.(\d+)$", classifier) for classifier in base.fields("Classifier")]
    assert [int(minor[1]) for minor in minors if minor] == [11, 12, 13, 14]
    labels = [url.split(", ")[0] for url in base.fields("Project-URL")]
    assert labels == ["Homepage", "Documentation", "Changelog", "Issues"]


def test_links_of_the_description_are_absolute_and_lead_to_files(base: Wheel) -> None:
    text = base.metadata.get_payload()
    assert isinstance(text, str)
    found = re.findall(r"\]\(([^)]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", text)
    targets = [link or attribute for link, attribute in found]
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    homepage = base.fields("Project-URL")[0].split(", ")[1]
    ours = [target.removeprefix(f"{homepage}/") for target in targets if target.startswith(f"{homepage}/")]
    places = [re.sub(r"^(?:blob|raw)/main/|#.*$", "", target) for target in ours]
    assert len(places) > 10
    assert [place for place in places if not (ROOT / place).exists()] == []


def test_what_a_client_needs_is_light(base: Wheel) -> None:
    required = [text for text in base.fields("Requires-Dist") if "extra ==" not in text]
    assert {re.split(r"[<>=]", text)[0] for text in required} == LIGHT


def test_the_models_are_the_repository_and_nothing_else(models: Wheel) -> None:
    files = {name.removeprefix("damoserve_models/") for name in models.names if ".dist-info/" not in name}
    assert files == {"__init__.py", "location.py", "py.typed"} | {f"repository/{name}" for name in in_tree(BUNDLED)}
    assert "repository/blood-cells/1/MODEL_CARD.md" in files
    assert models.metadata["Name"] == "damoserve-models"
    assert models.fields("Requires-Dist") == []
    assert b"Copyright (c) 2017 shenggan" in models.read(r".*/licenses/NOTICE")


def test_both_have_one_version(base: Wheel, models: Wheel) -> None:
    assert base.metadata["Version"] == models.metadata["Version"]


@pytest.mark.parametrize(("folder", "limit"), [(".", 5_000_000), ("profiles", 50_000_000)])
def test_a_wheel_of_the_source_distribution_is_the_same(
    folder: str, limit: int, base: Wheel, models: Wheel, tmp_path: Path
) -> None:
    archive = build(ROOT / folder, "sdist", tmp_path)
    assert archive.stat().st_size < limit
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    again = Wheel(build(tmp_path / archive.name.removesuffix(".tar.gz"), "wheel", tmp_path))
    assert again.names == (base if folder == "." else models).names
