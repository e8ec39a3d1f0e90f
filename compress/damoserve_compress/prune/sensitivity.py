"""Sensitivity of the stages of a network to cuts, and ratios that let all stages suffer alike."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from damoserve_compress.network import Network
from damoserve_compress.prune.cut import ChannelGroup, cut, uniform
from damoserve_compress.prune.statistics import mean_loss, reestimate_norms
from damoserve_compress.training.config import TrainConfig
from damoserve_compress.training.loader import Batch

RATIOS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class StageSensitivity:
    """The rise of the training loss when one stage alone is cut, before any training."""

    stage: str
    channels: int
    """The channels of the stage's groups together."""
    ratios: tuple[float, ...]
    rises: tuple[float, ...]
    """The rise of the loss for each ratio."""

    def ratio(self, rise: float) -> float:
        """The share of channels whose loss costs `rise`, by straight lines between the measured points.

        A stage that a larger cut seems to hurt less is taken to suffer as from the smaller one. Never more than the
        largest measured ratio.
        """
        rises = np.maximum.accumulate([0.0, *self.rises])
        # A flat piece has many answers: the largest is wanted.
        slope = np.arange(len(rises)) * 1e-9
        return float(np.interp(rise + slope[-1], rises + slope, [0.0, *self.ratios]))


def stage_sensitivity(
    network: Network,
    groups: list[ChannelGroup],
    batches: tuple[Sequence[Batch], Sequence[Batch]],
    config: TrainConfig,
    round_to: int,
) -> Iterable[StageSensitivity]:
    """Measures the stages one by one. `batches` give the batch norms their statistics, and the loss.

    What is compared with is the whole network after the same treatment.
    """
    statistics, judged = batches
    reference = cut(network, groups, {})
    reestimate_norms(reference, statistics)
    before = mean_loss(reference, judged, config)
    for stage in dict.fromkeys(group.stage for group in groups):
        members = [group for group in groups if group.stage == stage]
        rises = []
        for ratio in RATIOS:
            smaller = cut(network, groups, uniform(members, ratio, round_to))
            reestimate_norms(smaller, statistics)
            rises.append(mean_loss(smaller, judged, config) - before)
        yield StageSensitivity(stage, sum(group.channels for group in members), RATIOS, tuple(rises))


def ratios_at(rows: Iterable[StageSensitivity], rise: float) -> Mapping[str, float]:
    """The ratio of each stage at which it costs `rise` by itself."""
    return {row.stage: row.ratio(rise) for row in rows}
