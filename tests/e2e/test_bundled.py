"""The bundled model, served by a real process and asked by the real client."""

import io
import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray
from PIL import Image

from damoserve_client import Client, DetectionResult, ProfileUnavailable
from damoserve_compress.datasets import Dataset, Sample
from damoserve_compress.datasets.coco import CocoDataset
from damoserve_compress.datasets.rendered import RenderedSmears
from damoserve_compress.measure.evaluate import COCO_THRESHOLDS, average_precision, ground_truth, predict
from damoserve_compress.measure.runtime import onnx_detector
from damoserve_profiles.imaging import decode
from damoserve_profiles.manifest import MODEL_FILE
from damoserve_profiles.postprocess import Detections
from damoserve_profiles.repository import BUNDLED, ProfileFolder, Repository
from tests.support.process import RunningServer

MODEL = "blood-cells"
PROFILES = ("fp32", "int8", "int8+pruned", "pruned")
PICTURE = Path(__file__).parents[2] / "docs" / "images" / "smear.jpg"

DAMOSERVE = "import sys; from damoserve_client.cli import main; sys.argv[0] = 'damoserve'; main()"


def folder(profile: str) -> ProfileFolder:
    return Repository(BUNDLED).folder(MODEL, 1, profile)


def served(client: Client, data: bytes, profile: str) -> Detections:
    """What the server finds, under the thresholds of the evaluation."""
    result = client.detect(
        data,
        profile=profile,
        score_threshold=COCO_THRESHOLDS.score,
        max_detections=COCO_THRESHOLDS.max_detections,
    )
    return to_detections(result)


def to_detections(result: DetectionResult) -> Detections:
    found = result.detections
    boxes = [(d.box.x_min, d.box.y_min, d.box.x_max, d.box.y_max) for d in found]
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array([d.score for d in found], np.float32),
        np.array([d.label_id for d in found], np.int64),
    )


def recall(sample: Sample, found: Detections) -> float:
    """Share of the cells that a box of the same label covers with an IoU above a half."""
    covered = [
        ((found.labels == label) & (ious(box, found.boxes) > 0.5)).any()
        for box, label in zip(sample.boxes, sample.labels, strict=True)
    ]
    return float(np.mean(covered))


def ious(box: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = sides.clip(0).prod(1)
    areas = [(b[..., 2:] - b[..., :2]).prod(-1) for b in (box, boxes)]
    return np.asarray(shared / (areas[0] + areas[1] - shared), np.float32)


def test_all_profiles_serve_what_their_manifests_promise(client: Client) -> None:
    infos = {info.profile: info for info in client.profiles()}
    assert tuple(sorted(infos)) == PROFILES
    for name, info in infos.items():
        manifest = folder(name).verify()
        assert info.active
        assert info.labels == manifest.labels
        assert info.average_precision == manifest.accuracy.ap
        assert (info.model_bytes, info.parameter_count, info.mac_count) == (
            manifest.model_bytes,
            manifest.parameters,
            manifest.macs,
        )


@pytest.mark.parametrize("profile", PROFILES)
def test_rendered_cells_are_found(client: Client, profile: str) -> None:
    scenes = RenderedSmears(4, seed=77)
    for index in range(len(scenes)):
        picture = scenes[index]
        data = encode(picture.image)
        result = client.detect(data, profile=profile)
        assert result.profile == profile
        assert recall(picture, to_detections(result)) > 0.7


def encode(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("profile", PROFILES)
def test_the_server_answers_what_the_tools_measure(client: Client, profile: str) -> None:
    class OnePicture:
        labels = folder(profile).read_manifest().labels

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Sample:
            image = decode(PICTURE.read_bytes())
            return Sample(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), index)

    dataset: Dataset = OnePicture()
    spec = folder(profile).read_manifest().input
    [expected] = predict(onnx_detector(folder(profile).model_path), dataset, spec)
    found = served(client, PICTURE.read_bytes(), profile)
    assert found.labels.tolist() == expected.labels.tolist()
    assert np.allclose(found.scores, expected.scores, atol=1e-3)
    assert np.allclose(found.boxes, expected.boxes, atol=0.1)


@pytest.mark.parametrize("tier", ["realtime", "balanced", "accurate"])
def test_every_tier_answers(client: Client, tier: str) -> None:
    result = client.detect(PICTURE, tier=tier)  # type: ignore[arg-type]
    assert result.profile in PROFILES
    assert result.detections
    assert result.selection_reason in ("most_accurate_in_time", "quickest")


def test_a_patient_caller_gets_the_most_accurate_profile(client: Client) -> None:
    best = max(client.profiles(), key=lambda info: info.average_precision)
    result = client.detect(PICTURE, tier="accurate", min_accuracy=best.average_precision)
    assert result.profile == best.profile


def test_health_and_metrics_tell_of_it(server: RunningServer, client: Client) -> None:
    client.detect(PICTURE, profile="int8")
    with grpc.insecure_channel(server.address) as channel:
        request = health_pb2.HealthCheckRequest(service="damoserve.v1.DetectionService")
        assert health_pb2_grpc.HealthStub(channel).Check(request).status == health_pb2.HealthCheckResponse.SERVING
    with urllib.request.urlopen(server.metrics) as response:
        text = response.read().decode()
    assert 'damoserve_profile_state{model="blood-cells",profile="int8",state="active"} 1.0' in text


def test_a_profile_with_one_changed_byte_is_refused_and_the_others_serve(
    start_server: Callable[..., AbstractContextManager[RunningServer]], tmp_path: Path
) -> None:
    repository = Path(shutil.copytree(BUNDLED, tmp_path / "repository"))
    path = repository / MODEL / "1" / "int8" / MODEL_FILE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with start_server(repository) as running:
        with Client(running.address, timeout=60) as client:
            infos = {info.profile: info for info in client.profiles()}
            assert [name for name, info in infos.items() if not info.active] == ["int8"]
            assert "SHA-256" in infos["int8"].error
            with pytest.raises(ProfileUnavailable):
                client.detect(PICTURE, profile="int8")
            for profile in set(PROFILES) - {"int8"}:
                assert client.detect(PICTURE, profile=profile).profile == profile
        assert running.stop() == 0


def test_the_demo_shows_every_profile_and_cleans_up(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DAMOSERVE, "demo", str(PICTURE), "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(profile in done.stdout for profile in (*PROFILES, "realtime", "balanced", "accurate"))
    assert [path.name for path in tmp_path.iterdir()] == ["profiles.png"]


def test_the_command_prints_json(server: RunningServer) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DAMOSERVE, "detect", str(PICTURE), "--json", "--address", server.address],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answer = json.loads(done.stdout)
    assert {detection["label"] for detection in answer["detections"]} == {"RBC", "WBC", "Platelets"}


@pytest.mark.data
@pytest.mark.parametrize("profile", PROFILES)
def test_served_accuracy_is_that_of_the_manifest(client: Client, data: Path, profile: str) -> None:
    dataset = CocoDataset(data / "val.json", data / "images")
    names = json.loads((data / "val.json").read_text())["images"]
    paths = {image["id"]: data / "images" / image["file_name"] for image in names}
    detections = [
        served(client, paths[dataset[index].identifier].read_bytes(), profile) for index in range(len(dataset))
    ]
    measured = average_precision(ground_truth(dataset), detections)
    promised = folder(profile).read_manifest().accuracy
    print(f"{profile}: served AP {measured.ap:.4f} AP50 {measured.ap50:.4f}, manifest {promised.ap:.4f}")
    assert measured.ap == pytest.approx(promised.ap, abs=0.002)
