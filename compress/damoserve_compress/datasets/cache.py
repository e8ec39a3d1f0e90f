"""Data sets whose decoded pictures are kept, and whose fingerprint is."""

from functools import cached_property
from threading import Lock

from damoserve_compress.datasets.dataset import Dataset, Sample, hash_samples


class CachedDataset:
    """Keeps decoded samples, up to `limit` bytes of pictures; what is beyond is decoded anew each time.

    May be read by several threads.
    """

    def __init__(self, dataset: Dataset, limit: int = 4 << 30) -> None:
        self.labels = dataset.labels
        self._dataset = dataset
        self._samples: dict[int, Sample] = {}
        self._free = limit
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self._samples.get(index)
        if sample is None:
            sample = self._dataset[index]
            self._keep(index, sample)
        return sample

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the data set, computed when it is first asked for."""
        # A cache of a cache, such as the trainer makes of what a build hands it, asks that one.
        return self._dataset.fingerprint if isinstance(self._dataset, CachedDataset) else hash_samples(self)

    def _keep(self, index: int, sample: Sample) -> None:
        with self._lock:
            if index not in self._samples and sample.image.nbytes <= self._free:
                self._free -= sample.image.nbytes
                self._samples[index] = sample


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 over labels, pixels and boxes: equal for equal data only.

    Every sample is read for it, those of a `CachedDataset` once however often it is asked for.
    """
    return dataset.fingerprint if isinstance(dataset, CachedDataset) else hash_samples(dataset)
