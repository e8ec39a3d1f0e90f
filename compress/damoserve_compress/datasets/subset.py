"""Parts of a data set."""

from collections.abc import Sequence

import numpy as np

from damoserve_compress.datasets.dataset import Dataset, Sample

SELECTION_SHARE = 0.25
"""The share of the training images that choices are made on."""


class Subset:
    """The samples of `dataset` at `indices`."""

    def __init__(self, dataset: Dataset, indices: Sequence[int]) -> None:
        self.labels = dataset.labels
        self._dataset = dataset
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[self._indices[index]]


def split_selection(dataset: Dataset, seed: int = 0) -> tuple[Subset, Subset]:
    """The training images in two: those to calibrate on, and a held-out part on which choices are made.

    What is chosen on the validation images would be reported too well on them. Each part has one image at least; a
    data set of a single image is both.
    """
    order = np.random.default_rng(seed).permutation(len(dataset)).tolist()
    held = max(1, round(SELECTION_SHARE * len(order)))
    return Subset(dataset, sorted(order[held:] or order)), Subset(dataset, sorted(order[:held]))
