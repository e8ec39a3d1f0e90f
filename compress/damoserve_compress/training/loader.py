"""Augmented training batches, prepared in background threads while the network computes.

What an epoch holds depends only on (seed, epoch, position): neither on timing nor on where a run was resumed.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from damoserve_compress.datasets import Dataset, Sample
from damoserve_compress.training.augment import AugmentConfig, augment
from damoserve_compress.training.box_augment import augment_boxes
from damoserve_compress.training.config import TrainConfig
from damoserve_compress.training.losses import Target
from damoserve_profiles.manifest import InputSpec

ExtraImages = Callable[[int], Dataset]
"""The further images of an epoch, by its number."""

_SPARE = 2  # batches that wait ready


@dataclass(frozen=True)
class Batch:
    """`images` are uint8 RGB [N, S, S, 3]."""

    images: NDArray[np.uint8]
    samples: tuple[Sample, ...]

    def tensors(self, device: str = "cpu") -> tuple[Tensor, list[Target]]:
        """Images as float RGB 0..255 [N, 3, S, S] in channels-last memory, and what is in each."""
        images = torch.from_numpy(self.images).to(device).permute(0, 3, 1, 2).float()
        # One transfer for all, not two for each image: a GPU is waited for each time.
        counts = [len(sample.boxes) for sample in self.samples]
        boxes, labels = (
            torch.split(torch.from_numpy(np.concatenate(parts)).to(device), counts)
            for parts in zip(*((sample.boxes, sample.labels) for sample in self.samples), strict=True)
        )
        return images, [Target(*pair) for pair in zip(boxes, labels, strict=True)]


class BatchLoader:
    """Batches of all images of `dataset`, with those of `extra` mixed in, in a new order every epoch.

    A last batch less than half full is left out: its batch statistics would be noise, and the order changes anyway.
    Raises ValueError for an empty data set, and in `epoch` where the extra images' label names differ.
    """

    def __init__(self, dataset: Dataset, config: TrainConfig, extra: ExtraImages | None = None) -> None:
        if len(dataset) == 0:
            raise ValueError("the data set to train on is empty")
        self._dataset = dataset
        self._config = config
        self._extra = extra
        self._images = len(dataset) + (config.rendered if extra else 0)

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(self._images, self._config.batch_size)
        return max(full + (2 * rest >= self._config.batch_size), 1)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch `number`, from 0."""
        views = _EpochViews(self._sources(number), self._config, number)
        order = np.random.default_rng((self._config.seed, number)).permutation(self._images)

        def prepare(position: int) -> Batch:
            chosen = order[position * self._config.batch_size :][: self._config.batch_size]
            return views.batch(chosen.tolist(), position)

        with ThreadPoolExecutor(self._config.workers, thread_name_prefix="batches") as pool:
            waiting: deque[Future[Batch]] = deque()
            try:
                for position in range(len(self)):
                    waiting.append(pool.submit(prepare, position))
                    if len(waiting) > self._config.workers + _SPARE:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                # Whoever stops in the middle of an epoch need not wait for batches that nobody wants.
                pool.shutdown(wait=True, cancel_futures=True)

    def _sources(self, epoch: int) -> Dataset:
        if self._extra is None:
            return self._dataset
        further = self._extra(epoch)
        if self._images != len(self._dataset) + len(further):
            raise ValueError(f"{self._images - len(self._dataset)} extra images announced, {len(further)} given")
        return ConcatenatedDataset(self._dataset, further)


class ConcatenatedDataset:
    """Two data sets, one after the other, with labels numbered as the first one's.

    Raises ValueError where the second has labels that the first has not.
    """

    def __init__(self, first: Dataset, second: Dataset) -> None:
        unknown = set(second.labels) - set(first.labels)
        if unknown:
            raise ValueError(f"labels {sorted(unknown)} of the extra images are not in the data set")
        self.labels = first.labels
        self._parts = first, second
        self._relabel = np.array([first.labels.index(name) for name in second.labels], np.int64)

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def __getitem__(self, index: int) -> Sample:
        first, second = self._parts
        if index < len(first):
            return first[index]
        sample = second[index - len(first)]
        return Sample(sample.image, sample.boxes, self._relabel[sample.labels], sample.identifier)


def _tail(config: TrainConfig) -> AugmentConfig:
    calm = replace(config.augment, mosaic=0, mixup=0)
    return calm if config.tail_affine else replace(calm, scale=(1, 1), rotation=0, shear=0)


class _EpochViews:
    """The random views of one epoch."""

    def __init__(self, dataset: Dataset, config: TrainConfig, epoch: int) -> None:
        self._dataset = dataset
        self._seed = config.seed, epoch
        self._sizes = config.sizes or (config.size,)
        self._input = config.input
        self._progress = epoch / config.epochs
        self._config = _tail(config) if config.is_tail(epoch) else config.augment

    def batch(self, indices: Sequence[int], position: int) -> Batch:
        """Draws a view of each of the images `indices`, which are the `position`-th batch of the epoch."""
        # A stream of its own: those of the views end in an index of the data set.
        size = int(np.random.default_rng((*self._seed, len(self._dataset) + position)).choice(self._sizes))
        spec = self._input.model_copy(update={"width": size, "height": size})
        views = tuple(self._view(index, spec) for index in indices)
        return Batch(np.stack([view.image for view in views]), views)

    def _view(self, index: int, spec: InputSpec) -> Sample:
        rng = np.random.default_rng((*self._seed, index))

        def draw() -> Sample:
            return self._dataset[int(rng.integers(len(self._dataset)))]

        view = augment(self._dataset[index], draw, spec, self._config, rng)
        return augment_boxes(view, self._progress, self._config.boxes, rng) if self._config.boxes else view
