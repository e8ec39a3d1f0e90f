"""Golden files of a built profile."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from damoserve_compress.build.golden import add_golden, main
from damoserve_compress.measure.evaluate import Detector
from damoserve_profiles.golden import GOLDEN_FILE, Golden, detect, read_golden, tolerance
from damoserve_profiles.manifest import MODEL_FILE, Manifest
from damoserve_profiles.repository import BUNDLED, FileMismatch, ProfileFolder, Repository


@pytest.fixture
def folder(tmp_path: Path) -> ProfileFolder:
    """The bundled int8+pruned, as if it had been built without golden files."""
    source = Repository(BUNDLED).folder("blood-cells", 1, "int8+pruned")
    folder = Repository(tmp_path).folder("blood-cells", 1, "int8+pruned")
    folder.path.mkdir(parents=True)
    shutil.copy(source.model_path, folder.path)
    manifest = source.read_manifest()
    folder.write(manifest.model_copy(update={"files": {MODEL_FILE: manifest.files[MODEL_FILE]}}))
    return folder


def always(scores: list[list[float]], boxes: list[list[float]]) -> Detector:
    return lambda images: (
        np.repeat(np.array([scores], np.float32), len(images), 0),
        np.repeat(np.array([boxes], np.float32), len(images), 0),
    )


def read(folder: ProfileFolder, manifest: Manifest) -> tuple[Golden, NDArray[np.uint8]]:
    golden = read_golden(folder, manifest)
    assert golden is not None
    return golden


def test_the_command_adds_what_the_profile_finds_and_leaves_the_model_alone(
    folder: ProfileFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_golden(folder, folder.verify()) is None
    model = folder.read_manifest().files[MODEL_FILE]
    monkeypatch.setattr("sys.argv", ["golden", str(folder.path)])
    main()
    manifest = folder.verify()
    assert manifest.files[MODEL_FILE] == model
    golden, image = read(folder, manifest)
    assert len(golden.detections) > 20
    assert image.shape == (240, 320, 3)


def test_every_copy_is_computed_and_agrees(folder: ProfileFolder) -> None:
    detector = always([[0.9, 0.1], [0.2, 0.8]], [[10, 10, 60, 60], [100, 100, 300, 200]])
    manifest = add_golden(folder, folder.read_manifest(), detector)
    golden, image = read(folder, manifest)
    found = detect(detector, image, manifest, golden.score, copies=3)
    assert [golden.disagreement(each, tolerance(manifest)) for each in found] == [None] * 3
    assert [expected.label for expected in golden.detections] == [0, 1]


def test_a_threshold_above_everything_is_lowered_until_something_is_found(folder: ProfileFolder) -> None:
    manifest = add_golden(folder, folder.read_manifest(), always([[0.2]], [[10, 10, 60, 60]]))
    assert read(folder, manifest)[0].score == 0.125


def test_where_nothing_is_found_there_is_nothing_to_compare(folder: ProfileFolder) -> None:
    manifest = folder.read_manifest()
    assert add_golden(folder, manifest, always([[0.001]], [[10, 10, 60, 60]])) == manifest


@pytest.mark.parametrize("content", [b"{}", b"", b'{"image": "../../secret.png"}'])
def test_damaged_golden_files_are_told(folder: ProfileFolder, content: bytes) -> None:
    manifest = add_golden(folder, folder.read_manifest(), always([[0.9]], [[10, 10, 60, 60]]))
    (folder.path / GOLDEN_FILE).write_bytes(content)
    with pytest.raises(FileMismatch, match="build the profile again"):
        read_golden(folder, manifest)
