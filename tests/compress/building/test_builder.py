"""From a checkpoint and recipes to a repository that a server accepts, and what a build refuses."""

import hashlib
import json
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors import safe_open

from damoserve_compress.build.builder import BuildConfig, Builder
from damoserve_compress.build.errors import BuildError, RecipeFailed
from damoserve_compress.datasets import Dataset
from damoserve_compress.datasets.dataset import hash_samples
from damoserve_compress.datasets.rendered import RenderedSmears
from damoserve_compress.export import Tolerance
from damoserve_compress.measure.evaluate import Detector
from damoserve_compress.measure.runtime import onnx_detector
from damoserve_compress.network import Network, build_network
from damoserve_compress.network.checkpoint import Description, save_checkpoint
from damoserve_compress.prune import PruneError
from damoserve_compress.quantise import Images, QuantisationReport, quantise_onnx
from damoserve_profiles.manifest import DataSource, FileRecord, Thresholds
from damoserve_profiles.recipe import Export, FineTune, Prune, Quantise, Recipe
from damoserve_profiles.repository import BUNDLED, Repository, describe_file
from tests.support.compress.families import RES, fill
from tests.support.compress.old_processor import old_processor
from tests.support.compress.random_detections import all_found
from tests.support.compress.toy_training import TINY

SIZE = 96
LABELS = ("RBC", "WBC", "Platelets")
FP32 = Recipe(name="fp32", export=Export(candidates=50))
BOTH = Recipe(
    name="int8+pruned",
    prune=Prune(ratio=0.4, round_to=8, fine_tune=FineTune(epochs=1, learning_rate=1e-4)),
    export=Export(candidates=5000, stem="space_to_depth"),
    quantise=Quantise(calibration_images=3),
)
SMALL_BOTH = BOTH.model_copy(update={"prune": BOTH.prune.model_copy(update={"round_to": 2})})  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BuildConfig:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("build")
    checkpoint = folder / "cells.safetensors"
    save_checkpoint(checkpoint, build_network("P", 3), Description("cells", "P", LABELS, SIZE, SIZE))
    thresholds = Thresholds(score=0.3, nms_iou=0.7, max_detections=100)
    config = BuildConfig(checkpoint, folder / "repository", folder / "work", "scenes/val", thresholds, rounds=3)
    return replace(config, license="MIT", data=(DataSource(name="scenes"),))


@pytest.fixture(scope="module")
def reports() -> list[str]:
    return []


TRAIN, VAL = RenderedSmears(4, 1, (160, 120)), RenderedSmears(3, 2, (160, 120))


@pytest.fixture(scope="module")
def builder(config: BuildConfig, reports: list[str]) -> Builder:
    return Builder(config, TRAIN, VAL, reports.append)


@pytest.fixture(scope="module")
def repository(builder: Builder, config: BuildConfig) -> Repository:
    builder.build([FP32, BOTH])
    return Repository(config.repository)


def test_the_repository_holds_what_was_built(repository: Repository) -> None:
    assert [folder.profile for folder in repository.profiles("cells", 1)] == ["fp32", "int8+pruned"]
    for folder in repository.profiles("cells", 1):
        manifest = folder.verify()
        assert manifest.labels == LABELS
        assert manifest.accuracy.images == 3
        assert manifest.accuracy.ap75 is not None
        assert manifest.accuracy.difference is not None
        assert manifest.accuracy.difference.reference == "cells.safetensors"
        assert manifest.latency.runs == 3
        assert manifest.source.checkpoint == "cells.safetensors"
        assert manifest.source.cut_sha256 is None  # what was cut here has its recipe
        assert (manifest.license, manifest.data) == ("MIT", (DataSource(name="scenes"),))
        scores, boxes = onnx_detector(folder.model_path)(np.zeros((2, SIZE, SIZE, 3), np.uint8))
        assert scores.shape == (2, manifest.candidates, 3)
        assert boxes.shape == (2, manifest.candidates, 4)


def test_profiles_are_compared_with_the_uncompressed(repository: Repository) -> None:
    fp32, both = (repository.folder("cells", 1, name).read_manifest() for name in ("fp32", "int8+pruned"))
    assert fp32.agreement is None
    assert both.agreement is not None
    assert (both.agreement.reference, both.agreement.dataset, both.agreement.images) == ("fp32", "scenes/val", 3)


def test_no_more_candidates_are_promised_than_there_are_anchors(repository: Repository) -> None:
    assert repository.folder("cells", 1, "fp32").read_manifest().candidates == 50
    anchors = sum((SIZE // stride) ** 2 for stride in (8, 16, 32))
    assert repository.folder("cells", 1, "int8+pruned").read_manifest().candidates == anchors


def test_parameters_are_those_of_the_graph(repository: Repository) -> None:
    folder = repository.folder("cells", 1, "fp32")
    weights = [numpy_helper.to_array(tensor) for tensor in onnx.load(folder.model_path).graph.initializer]
    convolutions = [weight for weight in weights if weight.ndim == 4]
    biases = sum(len(weight) for weight in convolutions)
    scales = 3
    assert folder.read_manifest().parameters == sum(weight.size for weight in convolutions) + biases + scales


def test_pruning_and_quantising_make_it_smaller(repository: Repository) -> None:
    dense, small = (repository.folder("cells", 1, name).read_manifest() for name in ("fp32", "int8+pruned"))
    assert small.parameters < 0.6 * dense.parameters
    assert small.macs < 0.7 * dense.macs
    assert small.model_bytes < 0.25 * dense.model_bytes


def test_a_second_build_makes_nothing_again(repository: Repository, config: BuildConfig, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in config.work.rglob("*") if path.is_file()}
    reports: list[str] = []
    # Another builder, as in another run of the command: only the work folder is there to take it from.
    [again] = Builder(replace(config, repository=tmp_path), TRAIN, VAL, reports.append).build([BOTH])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [report for report in reports if "done before" in report]
    assert again.files == repository.folder("cells", 1, "int8+pruned").read_manifest().files


@pytest.fixture(scope="module")
def small(config: BuildConfig) -> BuildConfig:
    """A build of seconds."""
    folder = config.work.with_name("small")
    folder.mkdir()
    checkpoint = folder / "cells.safetensors"
    # Filled as for the family's tests: an untrained network overflows in 16 bits.
    save_checkpoint(checkpoint, fill(build_network(TINY, 3)), Description("cells", TINY.name, LABELS, SIZE, SIZE))
    return replace(config, checkpoint=checkpoint, repository=folder / "repository", work=folder / "work")


@pytest.fixture(scope="module")
def small_files(small: BuildConfig) -> dict[str, FileRecord]:
    [manifest] = Builder(small, TRAIN, VAL, lambda _: None).build([SMALL_BOTH])
    return manifest.files


def test_two_builds_of_the_same_inputs_write_the_same_bytes(
    small: BuildConfig, small_files: dict[str, FileRecord], tmp_path: Path
) -> None:
    elsewhere = replace(small, repository=tmp_path / "r", work=tmp_path / "w")
    [manifest] = Builder(elsewhere, TRAIN, VAL, lambda _: None).build([SMALL_BOTH])
    assert manifest.files == small_files


@pytest.mark.parametrize("stage", ["check_parity", "quantise_onnx", "interleave", "compare"])
def test_a_killed_build_goes_on_where_it_was(
    small: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    home = {"check_parity": "build.steps", "quantise_onnx": "targets.cpu"}.get(stage, "build.builder")
    elsewhere = replace(small, repository=tmp_path / "r", work=tmp_path / "w")
    with monkeypatch.context() as patch:
        patch.setattr(f"damoserve_compress.{home}.{stage}", killed)
        with pytest.raises(KeyboardInterrupt):
            Builder(elsewhere, TRAIN, VAL, lambda _: None).build([SMALL_BOTH])
    assert not elsewhere.repository.exists()
    finished = {path.parent: path.stat().st_mtime_ns for path in elsewhere.work.glob("*/stage.json")}
    assert finished
    Builder(elsewhere, TRAIN, VAL, lambda _: None).build([SMALL_BOTH])
    assert {folder: (folder / "stage.json").stat().st_mtime_ns for folder in finished} == finished


def test_a_network_that_was_cut_before_is_taken_as_it_is(
    small: BuildConfig, small_files: dict[str, FileRecord], tmp_path: Path
) -> None:
    [cut] = small.work.glob("prune-*/network.safetensors")
    shutil.copy(cut, small.checkpoint.with_name("cut.safetensors"))
    recipe = SMALL_BOTH.model_copy(update={"prune": Prune(network="cut.safetensors")})
    [manifest] = Builder(replace(small, repository=tmp_path), TRAIN, VAL, lambda _: None).build([recipe])
    assert manifest.files == small_files
    assert manifest.source.cut_sha256 == describe_file(cut).sha256
    other = small.checkpoint.with_name("other.safetensors")
    save_checkpoint(other, build_network(TINY, 3), Description("cells", TINY.name, LABELS, SIZE, 2 * SIZE))
    with pytest.raises(BuildError, match="is not of the model"):
        Builder(small, TRAIN, VAL).build([recipe.model_copy(update={"prune": Prune(network=other.name)})])


def test_networks_and_images_are_read_and_hashed_once(
    small: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, hashed, fingerprinted = Counter[str](), Counter[str](), Counter[int]()

    def load(path: Path, **options: Any) -> Any:
        loaded[Path(path).name] += 1
        return safe_open(path, **options)

    def hash_file(file: Any, algorithm: str, digest: Any = hashlib.file_digest) -> Any:
        hashed[Path(file.name).name] += 1
        return digest(file, algorithm)

    def hash_images(dataset: Dataset) -> str:
        fingerprinted[len(dataset)] += 1
        return hash_samples(dataset)

    monkeypatch.setattr("damoserve_compress.network.checkpoint.safe_open", load)
    monkeypatch.setattr("hashlib.file_digest", hash_file)
    monkeypatch.setattr("damoserve_compress.datasets.cache.hash_samples", hash_images)
    source = tmp_path / "source.safetensors"
    shutil.copy(small.checkpoint, source)
    shutil.copy(small.checkpoint, source.with_name("elsewhere.safetensors"))
    pruned = SMALL_BOTH.model_copy(update={"name": "pruned", "quantise": None})
    elsewhere = FP32.model_copy(update={"name": "elsewhere", "prune": Prune(network="elsewhere.safetensors")})
    config = replace(small, checkpoint=source, repository=tmp_path / "r", work=tmp_path / "w")
    Builder(config, TRAIN, VAL, lambda _: None).build([FP32, SMALL_BOTH, pruned, elsewhere])
    networks = ("source.safetensors", "elsewhere.safetensors", "network.safetensors")
    assert [(loaded[name], hashed[name]) for name in networks] == [(1, 1)] * 3
    assert fingerprinted == {len(TRAIN): 1, len(VAL): 1}


def test_bundled_profiles_tell_which_cut_network_they_are_from() -> None:
    for folder in Repository(BUNDLED).profiles("blood-cells", 1):
        manifest = folder.read_manifest()
        cut = manifest.recipe.prune and manifest.recipe.prune.network
        expected = describe_file(BUNDLED.parent / "checkpoints" / cut).sha256 if cut else None
        assert manifest.source.cut_sha256 == expected


@pytest.mark.parametrize("target", ["gpu", "npu"])
def test_other_targets_are_built_and_say_where_they_were_timed(
    small: BuildConfig, tmp_path: Path, target: Literal["gpu", "npu"]
) -> None:
    recipes = [
        Recipe(name="float", target=target, export=Export(candidates=50)),
        Recipe(name="int8", target=target, export=Export(candidates=50), quantise=Quantise(calibration_images=2)),
    ]
    for manifest in Builder(replace(small, repository=tmp_path), TRAIN, VAL, lambda _: None).build(recipes):
        assert manifest.recipe.target == target
        assert manifest.candidates == 50
        assert manifest.latency.runtime.endswith(f"in place of the {target}")


@pytest.mark.openvino
def test_engines_are_timed_together_and_the_manifest_names_the_fastest(small: BuildConfig, tmp_path: Path) -> None:
    both = replace(small, repository=tmp_path, engines=("onnxruntime", "openvino"))
    [manifest] = Builder(both, TRAIN, VAL, lambda _: None).build([FP32])
    assert set(manifest.latencies) == {"onnxruntime", "openvino"}
    assert manifest.latency == manifest.latencies[manifest.engine]


def test_a_fitted_checkpoint_is_tuned_calibrated_and_compared_on_fitted_images(
    config: BuildConfig, builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[NDArray[np.uint8]]] = {}

    def calibrate(source: Path, target: Path, images: Images, *rest: Any) -> QuantisationReport:
        seen["calibration"] = list(images())
        return quantise_onnx(source, target, images, *rest)

    def compare(detector: Detector, network: Network, images: NDArray[np.uint8], tolerance: Tolerance) -> None:
        seen["comparison"] = list(images)

    monkeypatch.setattr("damoserve_compress.targets.cpu.quantise_onnx", calibrate)
    monkeypatch.setattr("damoserve_compress.build.steps.check_parity", compare)
    checkpoint = tmp_path / "fitted.safetensors"
    save_checkpoint(checkpoint, build_network(RES, 3), Description("cells", RES.name, LABELS, SIZE, SIZE, "fit"))
    fitted = replace(config, checkpoint=checkpoint, repository=tmp_path / "r", work=tmp_path / "w")
    [manifest] = Builder(fitted, TRAIN, VAL).build([BOTH])
    assert manifest.input.resize == "fit"
    [record] = fitted.work.glob("prune-*/stage.json")
    assert json.loads(record.read_text())["inputs"]["training"]["resize"] == "fit"
    shown = SIZE * 120 // 160
    for images in (seen["calibration"], seen["comparison"]):
        assert images
        assert all(image[:shown].any() and not image[shown:].any() for image in images)


def test_a_profile_that_loses_too_much_is_not_written(builder: Builder, config: BuildConfig, tmp_path: Path) -> None:
    class Strict(Builder):
        source_detections = all_found(VAL)

    strict = Strict(replace(config, repository=tmp_path / "r", work=tmp_path / "w"), TRAIN, VAL)
    with pytest.raises(BuildError, match=r"allows 0\.1"):
        strict.build([FP32.model_copy(update={"max_ap_drop": 0.1})])
    assert not (tmp_path / "r").exists()


def test_profiles_of_another_checkpoint_are_not_replaced(
    repository: Repository, builder: Builder, config: BuildConfig, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, build_network("P", 3), Description("cells", "P", LABELS, SIZE, SIZE))
    with pytest.raises(BuildError, match="another version"):
        Builder(replace(config, checkpoint=other), TRAIN, VAL).build([FP32])


def test_data_with_other_labels_are_refused(config: BuildConfig, builder: Builder) -> None:
    class Renamed(RenderedSmears):
        labels = ("WBC", "RBC", "Platelets")

    with pytest.raises(BuildError, match="labels"):
        Builder(config, TRAIN, Renamed(1, 1))


def test_what_is_missing_is_said_before_anything_is_done(small: BuildConfig, tmp_path: Path) -> None:
    builder = Builder(replace(small, work=tmp_path), TRAIN, VAL, lambda _: None)
    with pytest.raises(BuildError, match=r"nowhere\.safetensors is not there: copy it beside"):
        builder.build([FP32, SMALL_BOTH.model_copy(update={"prune": Prune(network="nowhere.safetensors")})])
    with pytest.raises(BuildError, match="the same name"):
        builder.build([FP32, FP32])
    assert not list(tmp_path.iterdir())


def test_what_needs_openvino_is_said_before_anything_is_done(
    small: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    measured = Quantise(calibration_images=2, operators="measure", engine="openvino")
    one = replace(small, work=tmp_path)
    for config, recipe in (
        (replace(one, engines=("onnxruntime", "openvino")), SMALL_BOTH),
        (one, SMALL_BOTH.model_copy(update={"quantise": None, "precision": "bf16"})),
        (one, SMALL_BOTH.model_copy(update={"quantise": measured})),
    ):
        with pytest.raises(BuildError, match=r"int8\+pruned: OpenVINO is not installed: install damoserve\[openvino\]"):
            Builder(config, TRAIN, VAL, lambda _: None).build([FP32, recipe] if config is one else [recipe])
    assert not list(tmp_path.iterdir())


def test_a_precision_that_the_processor_has_not_is_said_before_anything_is_done(
    small: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_processor(monkeypatch)
    builder = Builder(replace(small, work=tmp_path / "work"), TRAIN, VAL)
    with pytest.raises(RecipeFailed, match="bf16: this processor does not compute in bf16"):
        builder.build([FP32, Recipe(name="bf16", precision="bf16", prune=SMALL_BOTH.prune)])
    assert not (tmp_path / "work").exists()


def test_what_does_not_fit_a_later_recipe_is_said_before_anything_is_done(small: BuildConfig, tmp_path: Path) -> None:
    class Renamed(RenderedSmears):
        labels = ("a", "b", "c")

    checkpoint = tmp_path / "things.safetensors"
    save_checkpoint(checkpoint, build_network(TINY, 3), Description("things", TINY.name, Renamed.labels, SIZE, SIZE))
    config = replace(small, checkpoint=checkpoint, work=tmp_path / "work")
    tune = FineTune(epochs=1, learning_rate=1e-4, rendered=2)
    recipes = [FP32, Recipe(name="cut", prune=Prune(macs=0.5, fine_tune=tune))]
    builder = Builder(config, Renamed(2, 1), Renamed(2, 2))
    with pytest.raises(PruneError, match="rendered scenes show blood cells, for which things has no labels"):
        builder.build(recipes)
    assert not config.work.exists()


def test_without_recipes_nothing_is_done(builder: Builder) -> None:
    with pytest.raises(BuildError, match="no recipe"):
        builder.build([])
