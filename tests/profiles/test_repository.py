"""Manifests and recipes on disk, and what happens when they are not what they should be."""

import json
import os
from pathlib import Path

import pytest

from damoserve_profiles.manifest import MANIFEST_FILE, MODEL_FILE, Manifest
from damoserve_profiles.recipe import RECIPES, RecipeError, read_recipe
from damoserve_profiles.repository import FileMismatch, ManifestInvalid, ProfileFolder, Repository, describe_file


@pytest.fixture
def folder(tmp_path: Path) -> ProfileFolder:
    found = Repository(tmp_path).folder("cells", 3, "int8")
    found.path.mkdir(parents=True)
    found.model_path.write_bytes(b"a graph")
    found.write(manifest(found))
    return found


def manifest(folder: ProfileFolder) -> Manifest:
    return Manifest.model_validate(
        {
            "model": folder.model,
            "version": folder.version,
            "profile": folder.profile,
            "variant": "P",
            "labels": ["RBC"],
            "input": {"width": 416, "height": 416},
            "candidates": 300,
            "thresholds": {"score": 0.3, "nms_iou": 0.7, "max_detections": 100},
            "parameters": 10,
            "macs": 100,
            "accuracy": {"dataset": "none", "images": 1, "ap": 0.5, "ap50": 0.9, "per_class": {"RBC": 0.5}},
            "latency": {
                "median_ms": 1.5,
                "p90_ms": 2,
                "runs": 3,
                "threads": 1,
                "cpu": "one",
                "instruction_set": "avx2",
                "runtime": "onnxruntime 1",
            },
            "recipe": {"name": "int8"},
            "source": {"checkpoint": "a.safetensors", "sha256": "0" * 64},
            "files": {MODEL_FILE: describe_file(folder.model_path)},
        }
    )


def test_a_written_profile_is_read_back(folder: ProfileFolder) -> None:
    assert folder.verify() == manifest(folder)
    assert folder.verify().model_bytes == 7


def test_the_repository_lists_what_is_there(folder: ProfileFolder) -> None:
    repository = Repository(folder.path.parents[2])
    (repository.root / "cells" / "10" / "fp32").mkdir(parents=True)
    (repository.root / "cells" / "notes").mkdir()
    (repository.root / "empty").mkdir()
    (repository.root / "cells" / "10" / ".partial").mkdir()
    assert repository.models() == ["cells"]
    assert repository.versions("cells") == [3, 10]
    assert [found.profile for found in repository.profiles("cells", 10)] == ["fp32"]
    assert Repository(repository.root / "nowhere").models() == []


def test_a_file_rewritten_with_as_many_bytes_a_moment_later_looks_different(folder: ProfileFolder) -> None:
    repository = Repository(folder.path.parents[2])
    at = 1_700_000_000_000_000_000
    os.utime(folder.model_path, ns=(at, at))
    before = repository.snapshot("cells")
    assert before == repository.snapshot("cells")
    folder.model_path.write_bytes(b"a gripe")
    os.utime(folder.model_path, ns=(at, at + 1_000_000))
    after = repository.snapshot("cells")
    assert before is not None
    assert after is not None
    assert after.version == before.version == 3
    assert after.files - before.files == {(str(folder.model_path), 7, at + 1_000_000)}


def test_one_changed_byte_is_noticed(folder: ProfileFolder) -> None:
    folder.model_path.write_bytes(b"a graph"[:-1] + b"i")
    with pytest.raises(FileMismatch, match="SHA-256"):
        folder.verify()


def test_a_missing_file_is_noticed(folder: ProfileFolder) -> None:
    folder.model_path.unlink()
    with pytest.raises(FileMismatch, match="is missing"):
        folder.verify()


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"labels": []},
        {"unknown": 1},
        {"profile": "fp32"},
        {"model": "../cells"},
        {"files": {}},
        {"accuracy": None},
    ],
)
def test_manifests_that_cannot_be_trusted_are_refused(folder: ProfileFolder, change: dict[str, object]) -> None:
    path = folder.path / MANIFEST_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ManifestInvalid):
        folder.verify()


def test_a_missing_manifest_is_refused(folder: ProfileFolder) -> None:
    (folder.path / MANIFEST_FILE).unlink()
    with pytest.raises(ManifestInvalid, match="build the profile again"):
        folder.read_manifest()


def test_the_bundled_recipes_are_valid_and_named_after_their_files() -> None:
    recipes = {path.stem: read_recipe(path) for path in RECIPES.glob("*.yaml")}
    assert set(recipes) >= {"fp32", "int8", "pruned", "int8+pruned"}
    assert all(recipe.name == stem for stem, recipe in recipes.items())
    assert recipes["int8+pruned"].prune == recipes["pruned"].prune


@pytest.mark.parametrize(
    "text",
    ["prune: {ratio: 2}", "quantize: {}", "- a list", "{", "quantise: {calibration_images: 0}"],
)
def test_wrong_recipes_name_their_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"wrong\.yaml"):
        read_recipe(path)


def test_a_missing_recipe_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe"):
        read_recipe(tmp_path / "none.yaml")
