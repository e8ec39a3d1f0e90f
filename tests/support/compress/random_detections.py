"""Data sets of random boxes, and detections that hit them or nearly do."""

import numpy as np
from numpy.typing import NDArray

from damoserve_compress.datasets import Dataset, Sample
from damoserve_profiles.postprocess import Detections


class Listed:
    """A data set of given samples."""

    def __init__(self, samples: list[Sample], labels: tuple[str, ...] = ("a", "b", "c")) -> None:
        self.labels = labels
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]


def random_boxes(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    corner = rng.uniform(0, 60, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(4, 140, (count, 2))], 1).astype(np.float32)


def random_dataset(rng: np.random.Generator, images: int = 12) -> Listed:
    image = np.zeros((200, 200, 3), np.uint8)
    boxes = [random_boxes(rng, int(rng.integers(0, 8))) for _ in range(images)]
    return Listed([Sample(image, b, rng.integers(0, 3, len(b)), i * 7) for i, b in enumerate(boxes)])


def near_misses(rng: np.random.Generator, dataset: Dataset) -> list[Detections]:
    found = []
    for index in range(len(dataset)):
        sample = dataset[index]
        shaken = sample.boxes + rng.normal(0, 2, sample.boxes.shape)
        shaken[:, 2:] = np.maximum(shaken[:, 2:], shaken[:, :2] + 1)  # COCO ignores detections of negative area
        boxes = np.concatenate([shaken, random_boxes(rng, 5)]).astype(np.float32)
        labels = np.concatenate([sample.labels, rng.integers(0, 3, 5)])
        scores = np.sort(rng.random(len(boxes)).astype(np.float32))[::-1]
        found.append(Detections(boxes, scores.copy(), labels))
    return found


def as_found(sample: Sample) -> Detections:
    return Detections(sample.boxes, np.linspace(1, 0.5, len(sample.boxes), dtype=np.float32), sample.labels)


def all_found(dataset: Dataset) -> list[Detections]:
    return [as_found(dataset[index]) for index in range(len(dataset))]
