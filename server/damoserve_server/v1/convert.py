"""Turns messages of `damoserve.v1` into requests and results into messages, and checks arguments. Pure functions."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Literal

from damoserve.v1 import detection_pb2 as pb
from damoserve_profiles.manifest import Manifest
from damoserve_profiles.postprocess import Detections
from damoserve_server.detection.request import MAX_DETECTIONS, DetectionRequest, DetectionResult, Timings
from damoserve_server.errors import ArgumentOutOfRange, ProfileAndTier
from damoserve_server.models.catalogue import ActiveProfile, FailedProfile, Model, Profile, ProfileState
from damoserve_server.rpc.duration import to_duration
from damoserve_server.scheduling.policy import LOWEST_PRIORITY
from damoserve_server.scheduling.selection import Reason, Tier
from damoserve_server.v1.window import Drop

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
DROPS = {
    Drop.SERVER: pb.DetectStreamResponse.DROP_REASON_SERVER_BEHIND,
    Drop.CLIENT: pb.DetectStreamResponse.DROP_REASON_CLIENT_BEHIND,
}
OVERLOADS = {
    pb.StreamOptions.OVERLOAD_UNSPECIFIED: False,
    pb.StreamOptions.OVERLOAD_WAIT: False,
    pb.StreamOptions.OVERLOAD_DROP_OLDEST: True,
}
"""Each `on_overload` that a stream may ask for, and whether frames are dropped under it."""
STATES = {
    ProfileState.ACTIVE: pb.Profile.STATE_ACTIVE,
    ProfileState.FAILED: pb.Profile.STATE_FAILED,
    ProfileState.LOADING: pb.Profile.STATE_LOADING,
    ProfileState.UNLOADED: pb.Profile.STATE_UNLOADED,
}

RequestFields = pb.DetectRequest | pb.StreamOptions


def to_request(
    request: pb.DetectRequest, arrival: float, time_remaining: float | None, default_budget: float
) -> DetectionRequest:
    """Returns the request of one call, its budget turned into a deadline.

    `arrival` is on the monotonic clock. In seconds are `time_remaining`, until the deadline of the gRPC call, and
    `default_budget`, for a call with neither a deadline nor a budget. The image is checked later, where it is read.
    Raises ArgumentOutOfRange or ProfileAndTier.
    """
    budgets = [] if time_remaining is None else [time_remaining]
    budget = _latency_budget(request)
    deadline = arrival + min(budgets if budget is None else [*budgets, budget], default=default_budget)
    return _to_request(request, request.image.content, arrival, deadline)


def to_template(options: pb.StreamOptions, arrival: float, time_remaining: float | None) -> DetectionRequest:
    """Returns a request with all that the frames of a stream have in common; its deadline is the stream's.

    Raises ArgumentOutOfRange or ProfileAndTier.
    """
    _latency_budget(options)
    if options.on_overload not in OVERLOADS:
        raise _out_of_range("on_overload", str(options.on_overload), "a known policy")
    deadline = inf if time_remaining is None else arrival + time_remaining
    return _to_request(options, b"", arrival, deadline)


def to_frame(frame: pb.Frame, template: DetectionRequest, arrival: float, budget: float) -> DetectionRequest:
    """Returns the request of one frame. `budget` is that of a frame without its own, in seconds.

    Raises ArgumentOutOfRange.
    """
    own = _latency_budget(frame)
    deadline = min(template.deadline, arrival + (budget if own is None else own))
    return replace(template, image=frame.image.content, arrival=arrival, deadline=deadline)


def frame_budget(options: pb.StreamOptions, default: float) -> float:
    """Returns the budget of the frames that have none of their own, in seconds."""
    budget = _latency_budget(options)
    return default if budget is None else budget


def _to_request(fields: RequestFields, image: bytes, arrival: float, deadline: float) -> DetectionRequest:
    return DetectionRequest(
        image=image,
        arrival=arrival,
        deadline=deadline,
        model=fields.model,
        profile=fields.profile or None,
        tier=_tier(fields),
        min_accuracy=_fraction(fields, "min_accuracy") or 0.0,
        score_threshold=_fraction(fields, "score_threshold"),
        max_detections=_max_detections(fields),
        priority=_priority(fields),
    )


def _latency_budget(message: RequestFields | pb.Frame) -> float | None:
    if not message.HasField("latency_budget"):
        return None
    budget = message.latency_budget.seconds + message.latency_budget.nanos / 1e9
    if budget <= 0:
        raise _out_of_range("latency_budget", f"{budget:g} s", "positive")
    return budget


def _tier(request: RequestFields) -> Tier | None:
    if request.latency_tier == pb.LATENCY_TIER_UNSPECIFIED:
        return None
    if request.latency_tier not in TIERS:
        raise _out_of_range("latency_tier", str(request.latency_tier), "a known tier")
    if request.profile:
        raise ProfileAndTier("latency_tier", "at most one of profile and latency_tier may be set")
    return TIERS[request.latency_tier]


def _fraction(request: RequestFields, field: Literal["min_accuracy", "score_threshold"]) -> float | None:
    if not request.HasField(field):
        return None
    value: float = getattr(request, field)
    if not 0 <= value <= 1:  # so written, it refuses NaN too
        raise _out_of_range(field, f"{value:g}", "between 0 and 1")
    return value


def _max_detections(request: RequestFields) -> int | None:
    if not request.HasField("max_detections"):
        return None
    if not 1 <= request.max_detections <= MAX_DETECTIONS:
        raise _out_of_range("max_detections", str(request.max_detections), f"between 1 and {MAX_DETECTIONS}")
    return request.max_detections


def _priority(request: RequestFields) -> int:
    if not request.HasField("priority"):
        return LOWEST_PRIORITY
    if not 1 <= request.priority <= LOWEST_PRIORITY:
        raise _out_of_range("priority", str(request.priority), f"between 1 and {LOWEST_PRIORITY}")
    return request.priority


def _out_of_range(field: str, value: str, allowed: str) -> ArgumentOutOfRange:
    return ArgumentOutOfRange(field, f"{field} is {value}; it must be {allowed}", value=value)


def to_response(result: DetectionResult) -> pb.DetectResponse:
    manifest = result.profile.manifest
    response = pb.DetectResponse(
        image_width_px=result.image_size.width,
        image_height_px=result.image_size.height,
        model=manifest.model,
        model_version=manifest.version,
        profile=manifest.profile,
        selection_reason=REASONS[result.reason],
        batch_size=result.batch_size,
        timings=_timings(result.timings),
    )
    add_detections(response, result.detections, manifest.labels)
    return response


def add_detections(response: pb.DetectResponse, detections: Detections, labels: Sequence[str]) -> None:
    """Adds the boxes in place: messages made apart and copied into the response took three times as long."""
    add = response.detections.add
    for (x_min, y_min, x_max, y_max), score, label in zip(
        detections.boxes.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
    ):
        box = add(label=labels[label], label_id=label, score=score).box
        box.x_min, box.y_min, box.x_max, box.y_max = x_min, y_min, x_max, y_max


def _timings(timings: Timings) -> pb.StageTimings:
    return pb.StageTimings(
        decode_wait=to_duration(timings.decode_wait),
        decode=to_duration(timings.decode),
        queue=to_duration(timings.queue),
        batch_wait=to_duration(timings.batch_wait),
        inference=to_duration(timings.inference),
        postprocess=to_duration(timings.postprocess),
        respond=to_duration(timings.respond),
        total=to_duration(timings.total),
    )


def to_profiles(model: Model) -> list[pb.Profile]:
    """Returns the active profiles, the most accurate first, then the others, then those of a refused version."""
    refused = [to_profile(model.name, profile.folder.version, profile) for profile in model.refused]
    return [to_profile(model.name, model.version, profile) for profile in model.profiles] + refused


def to_profile(model: str, version: int, profile: Profile) -> pb.Profile:
    message = pb.Profile(model=model, model_version=version, profile=profile.name, state=STATES[profile.state])
    if profile.manifest is not None:
        message.MergeFrom(_manifest_fields(profile.manifest))
    match profile:
        case ActiveProfile():
            message.expected_latency.CopyFrom(to_duration(profile.latency.expected()))
        case FailedProfile():
            message.error = profile.summary
    return message


def _manifest_fields(manifest: Manifest) -> pb.Profile:
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
