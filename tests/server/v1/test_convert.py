"""What the wire means; the refusals are in test_errors."""

import pytest
from google.protobuf.duration_pb2 import Duration

from damoserve.v1 import detection_pb2 as pb
from damoserve_server.rpc.duration import to_duration
from damoserve_server.scheduling.selection import Reason, Tier
from damoserve_server.v1.convert import REASONS, TIERS, to_request


def convert(remaining=None, **fields):
    return to_request(pb.DetectRequest(**fields), 100.0, remaining, default_budget=10.0)


@pytest.mark.parametrize(
    ("remaining", "fields", "deadline"),
    [
        (None, {}, 110.0),
        (3.0, {}, 103.0),
        (None, {"latency_budget": Duration(seconds=2)}, 102.0),
        (3.0, {"latency_budget": Duration(seconds=2)}, 102.0),
        (1.0, {"latency_budget": Duration(seconds=2)}, 101.0),
    ],
)
def test_the_smaller_of_deadline_and_budget_counts(remaining, fields, deadline) -> None:
    assert convert(remaining, **fields).deadline == deadline


def test_zero_is_a_value_and_absent_is_the_default() -> None:
    assert convert(score_threshold=0.0).score_threshold == 0.0
    request = convert()
    assert (request.score_threshold, request.max_detections, request.profile, request.tier) == (None,) * 4


def test_every_tier_and_reason_has_its_number() -> None:
    assert set(TIERS) == set(pb.LatencyTier.values()) - {0}
    assert set(TIERS.values()) == set(Tier)
    assert set(REASONS.values()) == set(pb.SelectionReason.values()) - {0}
    assert set(REASONS) == set(Reason)


def test_durations_are_exact_to_the_nanosecond() -> None:
    assert to_duration(1.5e-6).ToNanoseconds() == 1500
