"""Mixed precision: convolutions go back to float, the most harmful first, until the accuracy is kept."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from damoserve_compress.quantise.graph import ConvolutionGroup


@dataclass(frozen=True)
class Decision:
    """A group was tried in float."""

    group: str
    ap_before: float
    """The average precision on the selection images, 0..1."""
    ap_after: float
    kept: bool
    """True where the group stays in float: only if that helped."""


@dataclass(frozen=True)
class MixedPrecision:
    """The outcome of mixed precision: the groups that stay in float, and the decisions that led there."""

    floating: tuple[ConvolutionGroup, ...]
    ap: float
    decisions: tuple[Decision, ...]


def keep_accuracy(
    ranking: Callable[[], Iterable[ConvolutionGroup]],
    measure: Callable[[tuple[ConvolutionGroup, ...]], float],
    lowest: float,
    limit: int,
) -> MixedPrecision:
    """Starts with nothing in float and stops as soon as the average precision is at least `lowest`.

    `measure` gives it for a choice of groups in float. Each group is tried once, in the order of `ranking`, which is
    not asked for if nothing has to be tried; one that does not help goes back to 8 bits. No more than `limit` are kept.
    """
    floating: tuple[ConvolutionGroup, ...] = ()
    ap = measure(floating)
    decisions = []
    for group in ranking() if ap < lowest and limit else ():
        after = measure((*floating, group))
        kept = after > ap
        decisions.append(Decision(group.name, ap, after, kept))
        if kept:
            floating, ap = (*floating, group), after
        if ap >= lowest or len(floating) == limit:
            break
    return MixedPrecision(floating, ap, tuple(decisions))
