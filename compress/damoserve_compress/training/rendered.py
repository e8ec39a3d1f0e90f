"""Rendered blood smears as further training images."""

from functools import lru_cache

from damoserve_compress.datasets import Dataset
from damoserve_compress.datasets.cache import CachedDataset
from damoserve_compress.datasets.rendered import RenderedSmears
from damoserve_compress.training.config import TrainConfig
from damoserve_compress.training.loader import ExtraImages


def rendered_extra(config: TrainConfig) -> ExtraImages:
    """`config.rendered` scenes, new ones every `config.rendered_reuse` epochs."""

    @lru_cache(maxsize=1)
    def series(number: int) -> Dataset:
        # Far from the small seeds that others use, so that no test or demo picture is trained on.
        return CachedDataset(RenderedSmears(config.rendered, seed=(config.seed + 1) * 1_000_003 + number))

    return lambda epoch: series(epoch // config.rendered_reuse)


def rendered_fits(labels: tuple[str, ...]) -> bool:
    """Says whether rendered scenes can be mixed in: they show blood cells, which the labels must include."""
    return set(RenderedSmears.labels) <= set(labels)
