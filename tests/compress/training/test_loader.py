"""Training batches: every image once an epoch, the same for the same seed, whoever prepares them."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

from damoserve_compress.datasets import Sample
from damoserve_compress.datasets.cache import CachedDataset
from damoserve_compress.training.augment import AugmentConfig
from damoserve_compress.training.box_augment import BoxAugmentConfig
from damoserve_compress.training.config import TrainConfig
from damoserve_compress.training.loader import Batch, BatchLoader, ConcatenatedDataset
from tests.support.compress.toy_training import Squares


def loader(count: int, **changes: Any) -> BatchLoader:
    return BatchLoader(Squares(count), replace(TrainConfig(size=64, batch_size=4, seed=5), **changes))


def test_batches_depend_on_seed_epoch_and_position_only() -> None:
    first, again = list(loader(8).epoch(2)), list(loader(8).epoch(2))
    assert all((a.images == b.images).all() for a, b in zip(first, again, strict=True))
    other = list(loader(8).epoch(3))
    assert any((a.images != b.images).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(("count", "sizes"), [(8, [4, 4]), (9, [4, 4]), (10, [4, 4, 2]), (1, [1])])
def test_an_epoch_has_every_image_once_but_for_a_small_rest(count: int, sizes: list[int]) -> None:
    batches = list(loader(count).epoch(0))
    assert [len(batch.images) for batch in batches] == sizes
    assert len(loader(count)) == len(sizes)
    seen = [sample.identifier for batch in batches for sample in batch.samples]
    assert len(set(seen)) == len(seen)


def test_an_epoch_can_be_left_early() -> None:
    class Counting(Squares):
        reads = 0

        def __getitem__(self, index: int) -> Sample:
            Counting.reads += 1
            return super().__getitem__(index)

    batches = BatchLoader(Counting(64), TrainConfig(size=64, batch_size=4)).epoch(0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert Counting.reads < 32


def test_tensors_are_channels_last_floats() -> None:
    images, targets = next(loader(4).epoch(0)).tensors()
    assert images.shape == (4, 3, 64, 64)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert all(len(target.boxes) == len(target.labels) for target in targets)


def equal(first: Iterable[Batch], second: Iterable[Batch]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(a.images.shape == b.images.shape and bool((a.images == b.images).all()) for a, b in pairs)


RICH = AugmentConfig(mosaic=0.7, mixup=0.5)


def test_how_many_threads_prepare_them_makes_no_difference() -> None:
    assert equal(loader(16, augment=RICH).epoch(1), loader(16, augment=RICH, workers=3).epoch(1))


@pytest.mark.parametrize(
    ("tail_affine", "calm"), [(True, AugmentConfig(rotation=20)), (False, AugmentConfig(scale=(1, 1)))]
)
def test_the_tail_ends_mosaic_and_mixup_and_the_affine_map(tail_affine: bool, calm: AugmentConfig) -> None:
    rich = loader(8, augment=replace(RICH, rotation=20), epochs=4, tail_epochs=2, tail_affine=tail_affine)
    plain = loader(8, augment=calm)
    assert not equal(rich.epoch(1), plain.epoch(1))
    assert equal(rich.epoch(2), plain.epoch(2))


def test_multi_scale_batches_have_one_of_the_sizes() -> None:
    batches = list(loader(64, sizes=(64, 96, 128)).epoch(0))
    assert {batch.images.shape[1:3] for batch in batches} == {(64, 64), (96, 96), (128, 128)}
    assert equal(batches, loader(64, sizes=(64, 96, 128)).epoch(0))


def test_box_level_augmentation_grows_with_the_training() -> None:
    boxes = AugmentConfig(boxes=BoxAugmentConfig(box_probability=1))
    augmented, plain = loader(32, augment=boxes), loader(32)
    changed = [
        [not equal([a], [b]) for a, b in zip(augmented.epoch(number), plain.epoch(number), strict=True)]
        for number in (0, 119)
    ]
    assert not any(changed[0])
    assert sum(changed[1]) > len(changed[1]) / 2


def test_a_cache_keeps_what_fits_and_decodes_the_rest_anew() -> None:
    class Counting(Squares):
        reads = 0

        def __getitem__(self, index: int) -> Sample:
            Counting.reads += 1
            return super().__getitem__(index)

    cache = CachedDataset(Counting(4), limit=2 * Squares(1)[0].image.nbytes)
    samples = [[cache[index] for index in range(4)] for _ in range(3)]
    assert Counting.reads == 4 + 2 + 2
    assert all((a.image == b.image).all() for a, b in zip(samples[0], samples[2], strict=True))


def test_joined_data_sets_share_the_numbering_of_labels() -> None:
    class Renamed(Squares):
        labels = ("red", "light")

    joined = ConcatenatedDataset(Squares(2), Renamed(2))
    assert len(joined) == 4
    assert joined.labels == ("light", "red")
    assert joined[2].labels.tolist() == [1 - label for label in Squares(2)[0].labels]
    Renamed.labels = ("red", "green")
    with pytest.raises(ValueError, match="green"):
        ConcatenatedDataset(Squares(2), Renamed(2))
