"""Augmented training batches, prepared in one background thread while the network computes.

What an epoch holds depends only on (seed, epoch, position): neither on timing nor on where a run was resumed.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from damoserve_compress.datasets import Dataset, Sample
from damoserve_compress.training.augment import AugmentConfig, augment
from damoserve_compress.training.losses import Target

Extra = Callable[[int], Dataset]
"""The further images of an epoch, by its number."""

_PREFETCH = 3


class CachedDataset:
    """Keeps every sample once decoded; for data sets that fit in memory."""

    def __init__(self, dataset: Dataset) -> None:
        self.labels = dataset.labels
        self._dataset = dataset
        self._samples: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        if index not in self._samples:
            self._samples[index] = self._dataset[index]
        return self._samples[index]


@dataclass(frozen=True)
class Batch:
    """`images` are uint8 RGB [N, S, S, 3]."""

    images: NDArray[np.uint8]
    samples: tuple[Sample, ...]

    def tensors(self) -> tuple[Tensor, list[Target]]:
        """Images as float RGB 0..255 [N, 3, S, S] in channels-last memory, and what is in each."""
        images = torch.from_numpy(self.images).permute(0, 3, 1, 2).float()
        targets = [Target(torch.from_numpy(sample.boxes), torch.from_numpy(sample.labels)) for sample in self.samples]
        return images, targets


@dataclass(frozen=True)
class LoaderConfig:
    size: int
    batch_size: int
    seed: int
    augment: AugmentConfig


class BatchLoader:
    """Batches of all images of `dataset`, with those of `extra` mixed in, in a new order every epoch.

    A last batch less than half full is left out: its batch statistics would be noise, and the order changes anyway.
    Raises ValueError for an empty data set, and in `epoch` where the extra images' label names differ.
    """

    def __init__(
        self, dataset: Dataset, config: LoaderConfig, extra: Extra | None = None, extra_count: int = 0
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("the data set to train on is empty")
        self._dataset = dataset
        self._config = config
        self._extra = extra
        self._images = len(dataset) + (extra_count if extra else 0)

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(self._images, self._config.batch_size)
        return max(full + (2 * rest >= self._config.batch_size), 1)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch `number`, from 0."""
        further = self._extra(number) if self._extra else None
        relabel = self._relabelling(further) if further else None
        order = np.random.default_rng((self._config.seed, number)).permutation(self._images)

        def prepare(position: int) -> Batch:
            chosen = order[position * self._config.batch_size :][: self._config.batch_size]
            views = tuple(self._view(number, int(index), further, relabel) for index in chosen)
            return Batch(np.stack([view.image for view in views]), views)

        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            waiting: deque[Future[Batch]] = deque()
            try:
                for position in range(len(self)):
                    waiting.append(pool.submit(prepare, position))
                    if len(waiting) > _PREFETCH:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                # Whoever stops in the middle of an epoch need not wait for batches that nobody wants.
                pool.shutdown(wait=True, cancel_futures=True)

    def _view(self, epoch: int, index: int, further: Dataset | None, relabel: NDArray[np.int64] | None) -> Sample:
        rng = np.random.default_rng((self._config.seed, epoch, index))
        if index < len(self._dataset):
            return augment(self._dataset[index], self._config.size, self._config.augment, rng)
        assert further is not None
        assert relabel is not None
        view = augment(further[index - len(self._dataset)], self._config.size, self._config.augment, rng)
        return Sample(image=view.image, boxes=view.boxes, labels=relabel[view.labels], identifier=view.identifier)

    def _relabelling(self, further: Dataset) -> NDArray[np.int64]:
        """Index in the data set's labels of each of the further images' labels."""
        unknown = set(further.labels) - set(self._dataset.labels)
        if unknown:
            raise ValueError(f"labels {sorted(unknown)} of the extra images are not in the data set")
        if self._images != len(self._dataset) + len(further):
            raise ValueError(f"{self._images - len(self._dataset)} extra images announced, {len(further)} given")
        return np.array([self._dataset.labels.index(name) for name in further.labels], np.int64)
