"""What the wire means; the refusals are in test_errors."""

from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from damoserve.v1 import detection_pb2 as pb
from damoserve_profiles.imaging import Size
from damoserve_profiles.postprocess import Detections
from damoserve_profiles.repository import Repository
from damoserve_server.detection.request import DetectionRequest, DetectionResult, Timings
from damoserve_server.engines.engine import Engine
from damoserve_server.errors import ArgumentOutOfRange, ProfileAndTier
from damoserve_server.models.catalogue import ActiveProfile, FailedProfile, Model
from damoserve_server.rpc.duration import to_duration
from damoserve_server.scheduling.latency import LatencyEstimate
from damoserve_server.scheduling.selection import Reason, Tier
from damoserve_server.v1.convert import (
    OVERLOADS,
    REASONS,
    TIERS,
    frame_budget,
    to_frame,
    to_profiles,
    to_request,
    to_response,
    to_template,
)


def convert(remaining: float | None = None, **fields: Any) -> DetectionRequest:
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
def test_the_smaller_of_deadline_and_budget_counts(
    remaining: float | None, fields: dict[str, Any], deadline: float
) -> None:
    assert convert(remaining, **fields).deadline == deadline


@pytest.mark.parametrize(
    ("remaining", "own", "deadline"),
    [
        (None, None, 110.0),
        (None, 2, 107.0),
        (8.0, None, 108.0),
        (8.0, 2, 107.0),
        (8.0, 4, 108.0),
    ],
)
def test_a_frame_has_the_smaller_of_its_own_time_and_the_streams(
    remaining: float | None, own: int | None, deadline: float
) -> None:
    template = to_template(pb.StreamOptions(profile="quick", priority=2), 100.0, remaining)
    assert template.deadline == (inf if remaining is None else 108.0)
    message = pb.Frame(image=pb.Image(content=b"image"), latency_budget=None if own is None else Duration(seconds=own))
    frame = to_frame(message, template, 105.0, budget=5.0)
    assert (frame.deadline, frame.arrival, frame.image) == (deadline, 105.0, b"image")
    assert (frame.profile, frame.priority) == ("quick", 2)


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


@pytest.mark.parametrize(
    ("field", "lowest", "highest", "refused"),
    [
        ("min_accuracy", 0.0, 1.0, [-0.001, 1.001, nan]),
        ("score_threshold", 0.0, 1.0, [-0.001, 1.001, nan]),
        ("max_detections", 1, 1000, [0, 1001]),
        ("priority", 1, 5, [0, 6]),
    ],
)
def test_numbers_are_accepted_within_their_bounds(
    field: str, lowest: float, highest: float, refused: list[float]
) -> None:
    assert [getattr(convert(**{field: value}), field) for value in (lowest, highest)] == [lowest, highest]
    for value in refused:
        with pytest.raises(ArgumentOutOfRange, match=f"{field} is .*; it must be between") as refusal:
            convert(**{field: value})
        assert refusal.value.field == field


def test_what_is_left_out_has_its_default() -> None:
    request = convert()
    assert (request.priority, request.min_accuracy, request.model, request.arrival) == (5, 0.0, "", 100.0)


@pytest.mark.parametrize(
    ("budget", "seconds"), [(Duration(nanos=1), 1e-9), (Duration(seconds=2, nanos=500_000_000), 2.5)]
)
def test_a_budget_is_counted_to_the_nanosecond(budget: Duration, seconds: float) -> None:
    options = pb.StreamOptions(latency_budget=budget)
    assert frame_budget(options, default=10.0) == seconds
    assert frame_budget(pb.StreamOptions(), default=10.0) == 10.0
    assert convert(latency_budget=budget).deadline == 100.0 + seconds


@pytest.mark.parametrize("budget", [Duration(), Duration(seconds=-1), Duration(nanos=-1)])
def test_a_budget_has_to_be_positive(budget: Duration) -> None:
    message = pb.Frame(latency_budget=budget)
    template = to_template(pb.StreamOptions(), 100.0, None)
    refusals: list[Callable[[], object]] = [
        lambda: convert(latency_budget=budget),
        lambda: to_template(pb.StreamOptions(latency_budget=budget), 100.0, None),
        lambda: to_frame(message, template, 100.0, 1.0),
    ]
    for refuse in refusals:
        with pytest.raises(ArgumentOutOfRange, match="must be positive"):
            refuse()


def test_of_profile_and_tier_there_is_at_most_one() -> None:
    assert convert(latency_tier=pb.LATENCY_TIER_REALTIME).tier is Tier.REALTIME
    assert convert(profile="quick").profile == "quick"
    with pytest.raises(ProfileAndTier):
        convert(profile="quick", latency_tier=pb.LATENCY_TIER_REALTIME)
    with pytest.raises(ArgumentOutOfRange, match="latency_tier is 9; it must be a known tier"):
        convert(latency_tier=9)


def test_frames_are_dropped_only_where_that_is_asked_for() -> None:
    options, unknown = pb.StreamOptions, cast(Any, 9)
    assert {policy for policy, drops in OVERLOADS.items() if drops} == {options.OVERLOAD_DROP_OLDEST}
    assert set(OVERLOADS) == set(options.Overload.values())
    with pytest.raises(ArgumentOutOfRange, match="on_overload is 9; it must be a known policy"):
        to_template(options(on_overload=unknown), 100.0, None)


def no_engine() -> Engine:
    raise AssertionError("nobody needs one")


@pytest.fixture
def quick(pristine: Path) -> ActiveProfile:
    manifest = Repository(pristine).folder("colours", 3, "quick").read_manifest()
    return ActiveProfile(manifest, [], LatencyEstimate({1: 0.25}), no_engine)


def test_an_answer_tells_all_that_was_found_and_where_the_time_went(quick: ActiveProfile) -> None:
    found = Detections(
        np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32), np.array([0.75, 0.5], np.float32), np.array([2, 0])
    )
    times = Timings(0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064)
    answer = to_response(DetectionResult(found, Size(80, 60), quick, Reason.QUICKEST, 3, times))
    assert (answer.image_width_px, answer.image_height_px, answer.batch_size) == (80, 60, 3)
    assert (answer.model, answer.model_version, answer.profile) == ("colours", 3, "quick")
    assert answer.selection_reason == pb.SELECTION_REASON_QUICKEST
    assert [(d.label, d.label_id, d.score) for d in answer.detections] == [("blue", 2, 0.75), ("red", 0, 0.5)]
    boxes = [(d.box.x_min, d.box.y_min, d.box.x_max, d.box.y_max) for d in answer.detections]
    assert boxes == [(1, 2, 3, 4), (5, 6, 7, 8)]
    told = {field.name: value.ToMilliseconds() for field, value in answer.timings.ListFields()}
    assert told == {
        "decode_wait": 1,
        "decode": 2,
        "queue": 4,
        "batch_wait": 8,
        "inference": 16,
        "postprocess": 32,
        "respond": 64,
        "total": 127,
    }


def test_a_model_tells_of_all_its_profiles_and_why_a_version_was_refused(quick: ActiveProfile) -> None:
    folder = Repository(Path("/models")).folder("colours", 3, "broken")
    failed = FailedProfile(folder, None, "secret", "it is broken")
    refused = FailedProfile(Repository(Path("/models")).folder("colours", 4, "quick"), None, "secret", "it differs")
    active, broken, newer = to_profiles(Model("colours", 3, (quick,), (failed,), refused=(refused,)))
    assert (active.profile, active.model_version, active.state) == ("quick", 3, pb.Profile.STATE_ACTIVE)
    assert active.expected_latency.ToMilliseconds() == 250
    assert (active.parameter_count, active.mac_count, active.model_bytes) == (1, 2, quick.manifest.model_bytes)
    assert (active.average_precision, active.average_precision_50) == pytest.approx((0.4, 0.4))
    assert (broken.profile, broken.model_version, broken.state) == ("broken", 3, pb.Profile.STATE_FAILED)
    assert (newer.profile, newer.model_version, newer.state) == ("quick", 4, pb.Profile.STATE_FAILED)
    assert [profile.error for profile in (active, broken, newer)] == ["", "it is broken", "it differs"]
