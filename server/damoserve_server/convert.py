"""Between protobuf and plain types; checks arguments. Pure functions."""

from typing import Literal

from google.protobuf.duration_pb2 import Duration

from damoserve.v1 import detection_pb2 as pb
from damoserve_profiles.manifest import Manifest
from damoserve_server.catalogue import ActiveProfile, FailedProfile, Model, Profile, State
from damoserve_server.detector import DetectionRequest, DetectionResult, Timings
from damoserve_server.errors import ArgumentOutOfRange, ProfileAndTier
from damoserve_server.router import Reason, Tier

TIERS = {
    pb.LATENCY_TIER_REALTIME: Tier.REALTIME,
    pb.LATENCY_TIER_BALANCED: Tier.BALANCED,
    pb.LATENCY_TIER_ACCURATE: Tier.ACCURATE,
}
REASONS = {
    Reason.REQUESTED: pb.SELECTION_REASON_REQUESTED,
    Reason.MOST_ACCURATE_IN_TIME: pb.SELECTION_REASON_MOST_ACCURATE_IN_TIME,
    Reason.QUICKEST: pb.SELECTION_REASON_QUICKEST,
}
STATES = {
    State.ACTIVE: pb.Profile.STATE_ACTIVE,
    State.FAILED: pb.Profile.STATE_FAILED,
    State.LOADING: pb.Profile.STATE_LOADING,
    State.UNLOADED: pb.Profile.STATE_UNLOADED,
}
MAX_DETECTIONS = 1000


def to_request(
    request: pb.DetectRequest, arrival: float, time_remaining: float | None, default_budget: float
) -> DetectionRequest:
    """`arrival` is on the monotonic clock; `time_remaining` is of the gRPC deadline, in seconds.

    `default_budget`, in seconds, is for a call with neither a deadline nor a budget. The image is checked later, where
    it is read. Raises ArgumentOutOfRange or ProfileAndTier.
    """
    return DetectionRequest(
        image=request.image.content,
        arrival=arrival,
        deadline=arrival + _budget(request, time_remaining, default_budget),
        model=request.model,
        profile=request.profile or None,
        tier=_tier(request),
        min_accuracy=_fraction(request, "min_accuracy") or 0.0,
        score_threshold=_fraction(request, "score_threshold"),
        max_detections=_max_detections(request),
    )


def _budget(request: pb.DetectRequest, time_remaining: float | None, default: float) -> float:
    budgets = [] if time_remaining is None else [time_remaining]
    if request.HasField("latency_budget"):
        budget = request.latency_budget.seconds + request.latency_budget.nanos / 1e9
        if budget <= 0:
            raise _out_of_range("latency_budget", f"{budget:g} s", "positive")
        budgets.append(budget)
    return min(budgets, default=default)


def _tier(request: pb.DetectRequest) -> Tier | None:
    if request.latency_tier == pb.LATENCY_TIER_UNSPECIFIED:
        return None
    if request.latency_tier not in TIERS:
        raise _out_of_range("latency_tier", str(request.latency_tier), "a known tier")
    if request.profile:
        raise ProfileAndTier("latency_tier", "at most one of profile and latency_tier may be set")
    return TIERS[request.latency_tier]


def _fraction(request: pb.DetectRequest, field: Literal["min_accuracy", "score_threshold"]) -> float | None:
    if not request.HasField(field):
        return None
    value: float = getattr(request, field)
    if not 0 <= value <= 1:  # so written, it refuses NaN too
        raise _out_of_range(field, f"{value:g}", "between 0 and 1")
    return value


def _max_detections(request: pb.DetectRequest) -> int | None:
    if not request.HasField("max_detections"):
        return None
    if not 1 <= request.max_detections <= MAX_DETECTIONS:
        raise _out_of_range("max_detections", str(request.max_detections), f"between 1 and {MAX_DETECTIONS}")
    return request.max_detections


def _out_of_range(field: str, value: str, allowed: str) -> ArgumentOutOfRange:
    return ArgumentOutOfRange(field, f"{field} is {value}; it must be {allowed}", value=value)


def to_response(result: DetectionResult) -> pb.DetectResponse:
    manifest = result.profile.manifest
    found = result.detections
    return pb.DetectResponse(
        detections=[
            pb.Detection(
                label=manifest.labels[label],
                label_id=label,
                score=score,
                box=pb.BoundingBox(x_min=box[0], y_min=box[1], x_max=box[2], y_max=box[3]),
            )
            for box, score, label in zip(
                found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
            )
        ],
        image_width_px=result.image_size.width,
        image_height_px=result.image_size.height,
        model=manifest.model,
        model_version=manifest.version,
        profile=manifest.profile,
        selection_reason=REASONS[result.reason],
        batch_size=result.batch_size,
        timings=_timings(result.timings),
    )


def _timings(timings: Timings) -> pb.StageTimings:
    return pb.StageTimings(
        decode=to_duration(timings.decode),
        queue=to_duration(timings.queue),
        inference=to_duration(timings.inference),
        postprocess=to_duration(timings.postprocess),
        total=to_duration(timings.total),
    )


def to_duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def to_profiles(model: Model) -> list[pb.Profile]:
    """The active ones, the most accurate first, then the others, then those of a version that was refused."""
    refused = [to_profile(model.name, profile.folder.version, profile) for profile in model.refused]
    return [to_profile(model.name, model.version, profile) for profile in model.profiles] + refused


def to_profile(model: str, version: int, profile: Profile) -> pb.Profile:
    message = pb.Profile(model=model, model_version=version, profile=profile.name, state=STATES[profile.state])
    if profile.manifest is not None:
        message.MergeFrom(_described(profile.manifest))
    match profile:
        case ActiveProfile():
            message.expected_latency.CopyFrom(to_duration(profile.latency.expected()))
        case FailedProfile():
            message.error = profile.summary
    return message


def _described(manifest: Manifest) -> pb.Profile:
    return pb.Profile(
        labels=manifest.labels,
        average_precision=manifest.accuracy.ap,
        average_precision_50=manifest.accuracy.ap50,
        validation_image_count=manifest.accuracy.images,
        model_bytes=manifest.model_bytes,
        parameter_count=manifest.parameters,
        mac_count=manifest.macs,
        input_width_px=manifest.input.width,
        input_height_px=manifest.input.height,
    )
