"""A legacy checkpoint of the reference implementation, from its `.pth` file to the boxes that a client gets.

What is expected comes from the weights as they are in the file, with an own reading of how the reference resizes an
image and suppresses boxes.
"""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from damoserve_client import Client
from damoserve_compress.build.builder import BuildConfig, Builder
from damoserve_compress.cli import app
from damoserve_compress.datasets import Sample
from damoserve_compress.datasets.labels import COCO_LABELS, read_labels
from damoserve_compress.network import build_network
from damoserve_profiles.manifest import InputSpec, Thresholds
from damoserve_profiles.recipe import Export, Recipe
from tests.support.compress.families import golden_value
from tests.support.process import RunningServer

KEYS = Path(__file__).parents[1] / "compress" / "network" / "golden" / "T.keys.json"
SIZE = 160
THRESHOLDS = Thresholds(score=0.75, nms_iou=0.7, max_detections=1000)
ASPECTS = [(160, 160), (320, 240), (211, 283), (300, 100), (77, 310)]
"""Width and height of the images."""


class Pictures:
    """Smooth noise with one box each; item i is always the same picture."""

    labels = read_labels(COCO_LABELS)

    def __len__(self) -> int:
        return len(ASPECTS)

    def __getitem__(self, index: int) -> Sample:
        coarse = np.random.default_rng(index).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        image = np.asarray(cv2.resize(coarse, ASPECTS[index], interpolation=cv2.INTER_CUBIC))
        return Sample(image, np.array([[10, 10, 60, 60]], np.float32), np.zeros(1, np.int64), index)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Those of the golden rule with 81 class channels, a tenth of it in these: most scores would round to 0 or 1."""
    shapes = {key: [81, *shape[1:]] if ".gfl_cls." in key else shape for key, shape in json.loads(KEYS.read_text())}
    values = {key: golden_value(key, tuple(shape)) for key, shape in shapes.items()}
    return {key: value / 10 if ".gfl_cls." in key else value for key, value in values.items()}


@pytest.fixture(scope="module")
def client(
    weights: dict[str, Tensor],
    start_server: Callable[..., AbstractContextManager[RunningServer]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Client]:
    """Of a server with the one profile that was built from the file."""
    folder = tmp_path_factory.mktemp("legacy")
    reference, ours = folder / "damoyolo_tinynasL20_T.pth", folder / "legacy.safetensors"
    saved = {"model": {f"module.{key}": value for key, value in weights.items()}, "epoch": 300, "optimizer": {}}
    torch.save(saved, reference)
    done = CliRunner().invoke(app, ["convert", str(reference), str(ours), "--model", "legacy", "--size", str(SIZE)])
    assert done.exit_code == 0, done.output
    config = BuildConfig(ours, folder / "repository", folder / "work", "noise/val", THRESHOLDS, rounds=1)
    builder = Builder(config, Pictures(), Pictures(), report=lambda line: None)
    [manifest] = builder.build([Recipe(name="fp32", export=Export(candidates=1000))])
    assert manifest.input == InputSpec(width=SIZE, height=SIZE, resize="fit")
    with start_server(config.repository) as server, Client(server.address, timeout=60) as connected:
        yield connected


def expected(weights: dict[str, Tensor], image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Boxes `[M, 4]` in pixels of the image, and their labels."""
    network = build_network("T", 81).eval()
    network.load_state_dict(weights)
    height, width = image.shape[:2]
    scale = min(SIZE / width, SIZE / height)
    shown = int(width * scale), int(height * scale)
    canvas = np.zeros((SIZE, SIZE, 3), np.float32)
    canvas[: shown[1], : shown[0]] = cv2.resize(image, shown)
    with torch.inference_mode():
        scores, boxes = (output[0].numpy() for output in network(torch.from_numpy(canvas.transpose(2, 0, 1))[None]))
    found = [(boxes[kept], label) for label in range(80) for kept in survivors(scores[:, label], boxes)]
    corners = np.array([box for box, _ in found]) * ([width / shown[0], height / shown[1]] * 2)
    return corners.clip(0, [width, height] * 2), np.array([label for _, label in found])


def survivors(scores: NDArray[np.float32], boxes: NDArray[np.float32]) -> list[int]:
    kept: list[int] = []
    for candidate in sorted(np.flatnonzero(scores >= THRESHOLDS.score), key=lambda index: -scores[index]):
        if all(iou(boxes[candidate], boxes[other]) <= THRESHOLDS.nms_iou for other in kept):
            kept.append(int(candidate))
    return kept


def iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    shared = (np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])).clip(0).prod()
    return float(shared / ((first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod() - shared))


@pytest.mark.parametrize("index", range(len(ASPECTS)), ids=[f"{width}x{height}" for width, height in ASPECTS])
def test_served_boxes_are_those_of_the_file(client: Client, weights: dict[str, Tensor], index: int) -> None:
    image = Pictures()[index].image
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "PNG")
    served = client.detect(encoded.getvalue(), profile="fp32").detections
    boxes, labels = expected(weights, image)
    assert len(boxes) > 20
    assert len(served) == len(boxes)
    found = np.array([(d.box.x_min, d.box.y_min, d.box.x_max, d.box.y_max) for d in served])
    distances = np.abs(found[:, None] - boxes[None]).max(2)
    distances[np.array([d.label_id for d in served])[:, None] != labels[None]] = np.inf
    worst = max(distances.min(0).max(), distances.min(1).max())
    print(f"{len(boxes)} boxes, at most {worst:.4f} px apart")
    assert worst < 1
