"""OpenVINO beside ONNX Runtime: the same answers, and which of the two serves a profile."""

import asyncio
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from damoserve.v1 import detection_pb2 as pb
from damoserve_profiles.imaging import decode, resize
from damoserve_profiles.manifest import Manifest
from damoserve_profiles.postprocess import Detections, select
from damoserve_profiles.repository import BUNDLED, Repository
from damoserve_profiles.runtimes import EngineName, openvino_core
from damoserve_server.engines.choice import choose, load_engine
from damoserve_server.engines.engine import EngineError, EngineLoader, EngineMissing, EngineOptions, Outputs
from damoserve_server.engines.onnxruntime import OnnxRuntimeEngine
from tests.support.pictures import Pictures
from tests.support.server import Serve

PICTURE = Path(__file__).parents[3] / "docs" / "images" / "smear.jpg"
OPTIONS = EngineOptions(max_batch_size=4)
ENGINE_MODULE = "damoserve_server.engines.openvino"


@pytest.fixture(scope="module")
def openvino_engine() -> EngineLoader:
    from damoserve_server.engines.openvino import OpenVinoEngine

    return OpenVinoEngine


@pytest.fixture
def no_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, ENGINE_MODULE, raising=False)


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    """Four views of one picture at the bundled networks' size."""
    manifest = Repository(BUNDLED).folder("blood-cells", 1, "fp32").read_manifest()
    picture = resize(decode(PICTURE.read_bytes()), manifest.input.size, "stretch")
    return np.ascontiguousarray(np.stack([picture, picture[::-1], picture[:, ::-1], picture[::-1, ::-1]]))


def bundled(profile: str) -> tuple[bytes, Manifest]:
    folder = Repository(BUNDLED).folder("blood-cells", 1, profile)
    return folder.model_path.read_bytes(), folder.read_manifest()


def prefer_openvino(manifest: Manifest, **update: Any) -> Manifest:
    return manifest.model_copy(update={"engine": "openvino"} | update)


def rewrite(repository: Path, profile: str, **update: Any) -> None:
    folder = Repository(repository).folder("colours", 3, profile)
    folder.write(prefer_openvino(folder.read_manifest(), **update))


def detections(outputs: Outputs, manifest: Manifest) -> list[Detections]:
    """Of each image, by the server's own selection: boxes by falling score."""
    size = manifest.input.size
    return [select(scores, boxes, manifest.thresholds, size, size) for scores, boxes in zip(*outputs, strict=True)]


@pytest.mark.openvino
@pytest.mark.parametrize(
    ("profile", "score", "pixels"),
    [("fp32", 1e-4, 0.01), ("pruned", 1e-4, 0.01), ("int8", 0.1, 5), ("int8+pruned", 0.1, 5)],
)
def test_bundled_profiles_find_the_same_in_both_runtimes(
    openvino_engine: EngineLoader, images: NDArray[np.uint8], profile: str, score: float, pixels: float
) -> None:
    model, manifest = bundled(profile)
    ours, theirs = (
        detections(engine(model, manifest, OPTIONS).run(images), manifest)
        for engine in (openvino_engine, OnnxRuntimeEngine)
    )
    for found, expected in zip(ours, theirs, strict=True):
        # Those far enough from the threshold to be above it in both.
        sure = expected.scores > manifest.thresholds.score + score
        distances = np.abs(expected.boxes[sure][:, None] - found.boxes[None]).max(2)
        differences = np.abs(expected.scores[sure][:, None] - found.scores[None])
        same = (distances < pixels) & (differences < score)
        same &= expected.labels[sure][:, None] == found.labels[None]
        assert sure.sum() > 10
        # In 8 bits a rounding can decide which of two overlapping boxes is suppressed.
        assert same.any(1).sum() >= sure.sum() - ("int8" in profile)


@pytest.mark.openvino
def test_a_batch_gives_what_its_images_give_in_buffers_that_stay(
    openvino_engine: EngineLoader, images: NDArray[np.uint8]
) -> None:
    engine = openvino_engine(*bundled("int8"), OPTIONS)
    batch = engine.run(images)
    kept = [part.copy() for part in batch]
    for index in range(len(images)):
        single = engine.run(images[index : index + 1])
        assert all(len(part) == 1 for part in single)
        assert all(np.array_equal(part[0], whole[index]) for part, whole in zip(single, kept, strict=True))
        assert all(np.shares_memory(part, whole) for part, whole in zip(single, batch, strict=True))
    assert not np.array_equal(kept[0][0], kept[0][1])


@pytest.mark.openvino
def test_bfloat16_is_close_to_the_file_but_not_the_same(
    openvino_engine: EngineLoader, images: NDArray[np.uint8]
) -> None:
    model, manifest = bundled("fp32")
    half = prefer_openvino(manifest, precision="bf16")
    if "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(EngineError, match="does not compute in bf16"):
            load_engine(model, half, OPTIONS)
        pytest.skip("this processor does not compute in bf16")
    scores, rough = (np.sort(load_engine(model, m, OPTIONS).run(images)[0].max(2)) for m in (manifest, half))
    assert 1e-4 < np.abs(scores - rough).max() < 0.05


@pytest.mark.openvino
@pytest.mark.parametrize(
    ("update", "message"),
    [({"candidates": 5}, "its manifest promises"), ({"labels": ("red",)}, "its manifest promises")],
)
def test_a_model_that_is_not_the_manifests_is_refused(
    openvino_engine: EngineLoader, pristine: Path, update: dict[str, Any], message: str
) -> None:
    folder = Repository(pristine).folder("colours", 3, "quick")
    manifest = prefer_openvino(folder.read_manifest(), **update)
    with pytest.raises(EngineError, match=message):
        openvino_engine(folder.model_path.read_bytes(), manifest, OPTIONS)


@pytest.mark.openvino
def test_a_file_that_is_no_model_is_refused(openvino_engine: EngineLoader, pristine: Path) -> None:
    manifest = Repository(pristine).folder("colours", 3, "quick").read_manifest()
    with pytest.raises(EngineError, match="OpenVINO refused the model"):
        openvino_engine(b"no model", manifest, OPTIONS)


@pytest.mark.parametrize(
    ("preferred", "options", "chosen"),
    [
        ("onnxruntime", {}, "onnxruntime"),
        ("openvino", {}, "openvino"),
        ("openvino", {"engine": "onnxruntime"}, "onnxruntime"),
        ("onnxruntime", {"engine": "openvino"}, "openvino"),
        ("openvino", {"providers": ("CUDAExecutionProvider", "CPUExecutionProvider")}, "onnxruntime"),
    ],
)
def test_the_operator_goes_before_the_manifest(
    pristine: Path, preferred: EngineName, options: dict[str, Any], chosen: EngineName
) -> None:
    manifest = Repository(pristine).folder("colours", 3, "quick").read_manifest()
    manifest = manifest.model_copy(update={"engine": preferred})
    assert choose(manifest, EngineOptions(4, **options)) == chosen


@pytest.mark.openvino
def test_the_preferred_engine_serves(
    openvino_engine: EngineLoader, serve: Serve, repository: Path, pictures: Pictures
) -> None:
    rewrite(repository, "accurate")

    async def scenario(**settings: Any) -> tuple[dict[str, Any], pb.DetectResponse]:
        async with serve(load_engine=load_engine, **settings) as client:
            engines = {p.name: type(p.engines[0]) for p in client.application._detector.result().catalogue.active()}
            return engines, await client.detect(pictures.red, profile="accurate")

    engines, answer = asyncio.run(scenario())
    assert engines == {"accurate": openvino_engine, "quick": OnnxRuntimeEngine}
    assert {detection.label for detection in answer.detections} == {"red"}
    forced, _ = asyncio.run(scenario(engine="openvino"))
    assert forced == {"accurate": openvino_engine, "quick": openvino_engine}


def test_without_openvino_a_profile_that_prefers_it_runs_in_onnx_runtime(
    no_openvino: None, pristine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Repository(pristine).folder("colours", 3, "quick")
    manifest = prefer_openvino(folder.read_manifest(), model="without-openvino")
    with caplog.at_level(logging.INFO):
        engines = [load_engine(folder.model_path.read_bytes(), manifest, OPTIONS) for _ in range(2)]
    assert [type(engine) for engine in engines] == [OnnxRuntimeEngine] * 2
    assert caplog.text.count("without-openvino/quick runs in ONNX Runtime") == 1
    assert "damoserve[openvino]" in caplog.text


def test_without_openvino_it_cannot_be_forced(no_openvino: None, pristine: Path) -> None:
    folder = Repository(pristine).folder("colours", 3, "quick")
    with pytest.raises(EngineMissing, match=r"install damoserve\[openvino\]"):
        load_engine(folder.model_path.read_bytes(), folder.read_manifest(), EngineOptions(4, engine="openvino"))


async def test_without_openvino_a_bfloat16_profile_fails_alone_and_callers_learn_why(
    no_openvino: None, serve: Serve, repository: Path, pictures: Pictures
) -> None:
    rewrite(repository, "accurate", precision="bf16")
    async with serve(load_engine=load_engine) as client:
        listed = (await client.profiles.ListProfiles(pb.ListProfilesRequest(model="colours"))).profiles
        errors, answer = {profile.profile: profile.error for profile in listed}, await client.detect(pictures.red)
    expected = "colours/3/accurate: bf16 needs OpenVINO: install damoserve[openvino] on the server"
    assert errors == {"quick": "", "accurate": expected}
    assert answer.profile == "quick"


def test_a_bfloat16_profile_cannot_be_forced_into_onnx_runtime(pristine: Path) -> None:
    folder = Repository(pristine).folder("colours", 3, "quick")
    manifest = prefer_openvino(folder.read_manifest(), precision="bf16")
    with pytest.raises(EngineMissing, match="set to onnxruntime only"):
        load_engine(folder.model_path.read_bytes(), manifest, EngineOptions(4, engine="onnxruntime"))


@pytest.mark.openvino
def test_no_usage_statistics_are_sent(openvino_engine: EngineLoader, tmp_path: Path) -> None:
    script = (
        f"import sys, {ENGINE_MODULE}, openvino.tools.ovc as ovc\n"
        "print([name for name, module in sys.modules.items() if 'openvino_telemetry' in name and module is not None])\n"
        "print(type(ovc.telemetry).__module__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={"HOME": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["[]", "openvino.tools.ovc.telemetry_stub"]
    assert list(tmp_path.iterdir()) == []
