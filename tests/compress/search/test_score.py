"""The entropy score against the reference's figures, and costs counted without building against the built network."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from damoserve_compress.measure.complexity import complexity
from damoserve_compress.network import VARIANTS, Structure, build_network
from damoserve_compress.network.structures import NeckStructure, StageStructure
from damoserve_compress.search import Budget, CostModel, Costs, entropy_score
from damoserve_compress.search.operators import depth
from damoserve_profiles.imaging import Size
from tests.support.compress.families import CSP, FAMILIES, MOBILE

TUTORIAL = Structure(
    name="tutorial",
    stem_channels=32,
    stages=(
        StageStructure(32, 96, bottleneck=24, depth=1),
        StageStructure(96, 96, bottleneck=96, depth=2),
        StageStructure(96, 256, bottleneck=128, depth=3),
        StageStructure(256, 256, bottleneck=144, depth=3, stride=1),
        StageStructure(256, 512, bottleneck=224, depth=3),
    ),
    neck=NeckStructure((128, 256, 512)),
)


@pytest.mark.parametrize(
    ("structure", "score", "layers"),
    [
        (TUTORIAL, 1399.2675807481487, 25),
        (VARIANTS["T"], 1015.1441, 19),
        (VARIANTS["S"], 1380.5875, 25),
        (VARIANTS["M"], 2293.5631, 35),
        (VARIANTS["L"], 3004.1578, 45),
    ],
    ids=lambda value: value.name if isinstance(value, Structure) else "",
)
def test_scores_and_depths_are_the_references(structure: Structure, score: float, layers: int) -> None:
    digits = 1e-6 if structure is TUTORIAL else 1e-4  # the variants' scores are known to four decimals
    assert entropy_score(structure) == pytest.approx(score, rel=0, abs=digits)
    assert depth(structure) == layers


@pytest.mark.parametrize(("last", "score"), [(6, 577.0716364544834), (8, 741.5108253132165)])
def test_scores_under_other_weights_are_the_references(last: float, score: float) -> None:
    assert entropy_score(TUTORIAL, (0, 0, 1, 1, last)) == pytest.approx(score, rel=0, abs=1e-6)


def test_the_mobile_score_counts_three_convolutions_a_block() -> None:
    wider = replace(MOBILE, stages=(*MOBILE.stages[:-1], replace(MOBILE.stages[-1], bottleneck=320)))
    # The last stage has two blocks, each with one convolution over the bottleneck, and weighs 16.
    assert entropy_score(wider) - entropy_score(MOBILE) == pytest.approx(16 * 2 * 0.5 * math.log(2))
    narrower = replace(MOBILE, bottleneck_kernel=3)
    only_first = entropy_score(MOBILE, (0, 1, 0, 0, 0)) - entropy_score(narrower, (0, 1, 0, 0, 0))
    assert only_first == pytest.approx(math.log(5 / 3))


def test_a_score_needs_five_weights() -> None:
    with pytest.raises(ValueError, match=r"needs 5 weights.*not 3"):
        entropy_score(TUTORIAL, (1, 1, 16))


NO_BLOCK = replace(CSP, stages=(*CSP.stages[:-1], replace(CSP.stages[-1], depth=1)))


@pytest.mark.parametrize(
    "structure",
    [VARIANTS["T"], VARIANTS["S"], VARIANTS["P"], VARIANTS["M"], VARIANTS["Ns"], *FAMILIES, NO_BLOCK],
    ids=lambda structure: structure.name,
)
def test_costs_are_those_of_the_built_network(structure: Structure) -> None:
    size = Size(96, 64)
    costs = CostModel(size, 3)(structure)
    assert (costs.parameters, costs.macs) == complexity(build_network(structure, 3), size)
    assert costs.latency_ms is None


def test_what_exceeds_a_budget_is_named() -> None:
    costs = Costs(parameters=2_000_001, macs=10, depth=19, latency_ms=2.5)
    assert not Budget().excess(costs)
    assert not Budget(2_000_001, 10, 19, 2.5).excess(costs)
    assert (
        Budget(parameters=2e6, latency_ms=2).excess(costs) == "parameters 2000001 above 2000000, latency_ms 2.5 above 2"
    )
    assert not Budget(latency_ms=2).excess(replace(costs, latency_ms=None))
