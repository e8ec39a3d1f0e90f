"""The bundled model says what it was made with, under which licence and how good it is: manifests and model card."""

import json
import re
from pathlib import Path

import pytest

from damoserve_profiles.manifest import DataSource, Manifest
from damoserve_profiles.repository import BUNDLED, ProfileFolder, Repository

ROOT = Path(__file__).parents[2]
FOLDERS = Repository(BUNDLED).profiles("blood-cells", 1)
CARD = (BUNDLED / "blood-cells" / "1" / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.profile)
def test_every_bundled_manifest_has_the_licences(folder: ProfileFolder) -> None:
    manifest = folder.verify()
    assert manifest.license == "Apache-2.0"
    bccd = DataSource(
        name="BCCD blood cells", license="MIT, Copyright (c) 2017 shenggan", citation="Shenggan/BCCD_Dataset d272fb1"
    )
    assert manifest.data == (bccd,)


def test_older_manifests_are_still_read() -> None:
    document = json.loads((FOLDERS[0].path / "manifest.json").read_bytes())
    del document["license"], document["data"]
    older = Manifest.model_validate(document)
    assert (older.license, older.data) == (None, ())


def test_the_card_has_the_figures_of_the_manifests() -> None:
    rows = re.findall(r"^\| `(.+?)` \| (.+) \|$", CARD, re.MULTILINE)
    assert {name: figures.split(" | ") for name, figures in rows} == {
        folder.profile: figures(folder.read_manifest()) for folder in FOLDERS
    }


def figures(manifest: Manifest) -> list[str]:
    accuracy = manifest.accuracy
    assert accuracy.ap75 is not None
    shares = accuracy.ap, accuracy.ap50, accuracy.ap75, *(accuracy.per_class[label] for label in manifest.labels)
    return [*(f"{100 * share:.1f}" for share in shares), f"{manifest.model_bytes / 1e6:.1f} MB"]


def test_the_reader_passes_over_the_card() -> None:
    assert Repository(BUNDLED).versions("blood-cells") == [1]
    assert {folder.profile for folder in FOLDERS} == {"fp32", "int8", "pruned", "int8+pruned"}


@pytest.mark.parametrize("name", ["LICENSE", "NOTICE"])
def test_the_models_carry_the_texts_of_the_project(name: str) -> None:
    """Distributions cannot take files from outside their folder, so that there are copies."""
    assert (ROOT / "profiles" / name).read_bytes() == (ROOT / name).read_bytes()


def test_the_notice_has_the_licence_of_the_data() -> None:
    notice = (ROOT / "NOTICE").read_text()
    assert "Copyright (c) 2017 shenggan" in notice
    assert "The above copyright notice and this permission notice shall be included in all" in notice
