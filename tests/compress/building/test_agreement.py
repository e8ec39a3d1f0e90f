"""Agreement of profiles with their reference: the matching against pycocotools, and what gets into the manifests."""

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from typer.testing import CliRunner, Result

from damoserve_compress.build.agreement import add_agreement
from damoserve_compress.cli import app
from damoserve_compress.datasets.coco import write_coco
from damoserve_compress.datasets.rendered import RenderedSmears
from damoserve_profiles.agreement import BoxCounts, compare
from damoserve_profiles.manifest import MODEL_FILE, Manifest
from damoserve_profiles.postprocess import Detections
from damoserve_profiles.repository import BUNDLED, ProfileFolder, Repository

CLASSES = 3


def detections(rng: np.random.Generator, near: Detections | None = None) -> Detections:
    """Random boxes, some of them near those of others, so that several compete for the same."""
    count = int(rng.integers(0, 30))
    corners = rng.uniform(0, 80, (count, 2))
    sides = rng.uniform(5, 40, (count, 2))
    if near is not None and len(near.boxes):
        chosen = near.boxes[rng.integers(0, len(near.boxes), count)]
        corners = chosen[:, :2] + rng.normal(0, 3, (count, 2))
        sides = (chosen[:, 2:] - chosen[:, :2]) * rng.uniform(0.8, 1.25, (count, 2))
    scores = np.sort(rng.uniform(0.5, 1, count))[::-1]
    boxes = np.concatenate([corners, corners + sides], axis=1)
    return Detections(boxes.astype(np.float32), scores.astype(np.float32), rng.integers(0, CLASSES, count))


def by_pycocotools(found: Detections, reference: Detections) -> dict[int, int]:
    """Matched boxes of each label, at IoU 0.5."""

    def rows(detections: Detections) -> list[dict[str, object]]:
        boxes = np.concatenate([detections.boxes[:, :2], detections.boxes[:, 2:] - detections.boxes[:, :2]], axis=1)
        return [
            {"id": index + 1, "image_id": 1, "category_id": label + 1, "bbox": box, "area": box[2] * box[3]}
            | {"iscrowd": 0, "score": score}
            for index, (box, score, label) in enumerate(
                zip(boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True)
            )
        ]

    with contextlib.redirect_stdout(io.StringIO()):
        truth, answer = COCO(), COCO()
        categories = [{"id": label + 1} for label in range(CLASSES)]
        for dataset, boxes in ((truth, reference), (answer, found)):
            dataset.dataset = {"images": [{"id": 1}], "annotations": rows(boxes), "categories": categories}
            dataset.createIndex()
        evaluation = COCOeval(truth, answer, "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.evaluate()
    images = [image for image in evaluation.evalImgs if image is not None]
    return {image["category_id"] - 1: int((image["dtMatches"] > 0).sum()) for image in images}


@pytest.mark.parametrize("seed", range(30))
def test_matches_as_coco_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference = detections(rng)
    found = detections(rng, reference)
    comparison = compare(found, reference)
    expected = by_pycocotools(found, reference)
    assert {label: counts.matched for label, counts in comparison.by_label.items()} == expected
    assert len(comparison.score_shifts) == sum(expected.values())
    for label, counts in comparison.by_label.items():
        assert counts.matched + counts.missing == (reference.labels == label).sum()
        assert counts.matched + counts.extra == (found.labels == label).sum()


def folders(version: Path) -> list[ProfileFolder]:
    return Repository(version.parents[1]).profiles(version.parent.name, int(version.name))


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """The bundled version as if nothing had been compared."""
    version = Path(shutil.copytree(BUNDLED / "blood-cells" / "1", tmp_path / "models" / "blood-cells" / "1"))
    for folder in folders(version):
        folder.write(folder.read_manifest().model_copy(update={"agreement": None}))
    return version


def manifests(version: Path) -> dict[str, Manifest]:
    return {folder.profile: folder.verify() for folder in folders(version)}


def agreement(data: Path, version: Path) -> Result:
    return CliRunner().invoke(app, ["agreement", str(version), "--data", str(data)])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for name in ("train", "val"):
        write_coco(RenderedSmears(6, seed=1, size=(320, 240)), folder).rename(folder / f"{name}.json")
    return folder


def test_the_command_measures_every_profile_against_the_uncompressed(data: Path, version: Path) -> None:
    models = {name: manifest.files[MODEL_FILE] for name, manifest in manifests(version).items()}
    result = agreement(data, version)
    assert result.exit_code == 0, result.output
    after = manifests(version)
    assert {name: manifest.files[MODEL_FILE] for name, manifest in after.items()} == models
    known = {name: manifest.agreement for name, manifest in after.items()}
    assert known.pop("fp32") is None
    for name, found in known.items():
        assert found is not None
        assert (found.reference, found.dataset, found.images) == ("fp32", f"{data.name}/val", 6)
        assert 0.5 < found.f1 <= 1
        assert f"{name}: agreement {found.f1:.4f} with fp32" in result.output
    assert known["int8"].f1 > known["int8+pruned"].f1  # type: ignore[union-attr]


def test_the_command_says_what_it_wants(data: Path, version: Path) -> None:
    result = agreement(data, version.parent)
    assert result.exit_code == 1
    assert "REPOSITORY/MODEL/VERSION" in result.output


def found_by(boxes: dict[str, int]) -> Callable[..., list[Detections]]:
    """Finds so many of the same boxes, by profile."""
    corners = np.arange(10, dtype=np.float32)[:, None] * 20 + np.array([0, 0, 10, 10], np.float32)

    def detect(folder: ProfileFolder, manifest: Manifest, thresholds: object) -> list[Detections]:
        count = boxes[folder.profile]
        return [Detections(corners[:count], np.ones(count, np.float32), np.zeros(count, np.int64))] * 2

    return detect


def add(version: Path, **boxes: int) -> list[str]:
    reports: list[str] = []
    folders = Repository(version.parent.parent).profiles("blood-cells", 1)
    add_agreement(
        folders, "scenes", found_by({"fp32": 10, "int8": 10, "pruned": 10, "int8+pruned": 5} | boxes), reports.append
    )
    return reports


def test_all_boxes_of_all_images_count(version: Path) -> None:
    add(version)
    known = {name: manifest.agreement for name, manifest in manifests(version).items()}
    assert known["int8"].f1 == 1  # type: ignore[union-attr]
    assert known["int8+pruned"].f1 == round(BoxCounts(matched=10, missing=10).agreement, 5)  # type: ignore[union-attr]
    assert known["int8+pruned"].per_class == {"RBC": 0.66667}  # type: ignore[union-attr]


def test_what_is_damaged_stays_as_it_is(version: Path) -> None:
    (version / "pruned" / MODEL_FILE).write_bytes(b"")
    reports = add(version)
    assert [report.partition(":")[0] for report in reports] == ["pruned", "int8", "int8+pruned"]
    assert ProfileFolder(version / "pruned").read_manifest().agreement is None


def test_what_is_not_comparable_has_no_agreement(version: Path) -> None:
    add(version)
    folder = ProfileFolder(version / "int8")
    manifest = folder.read_manifest()
    folder.write(manifest.model_copy(update={"input": manifest.input.model_copy(update={"resize": "fit"})}))
    add(version)
    assert folder.read_manifest().agreement is None
