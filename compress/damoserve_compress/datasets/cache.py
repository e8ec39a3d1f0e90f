"""Decoded pictures, kept."""

from threading import Lock

from damoserve_compress.datasets import Dataset, Sample


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

    def _keep(self, index: int, sample: Sample) -> None:
        with self._lock:
            if index not in self._samples and sample.image.nbytes <= self._free:
                self._free -= sample.image.nbytes
                self._samples[index] = sample
