"""Between protobuf messages and the client's own types; the sync and the async client share it."""

from collections.abc import Mapping
from typing import Any, get_args

from google.protobuf.duration_pb2 import Duration

from damoserve.v1 import detection_pb2 as pb
from damoserve_client.types import (
    Box,
    Detection,
    DetectionResult,
    DetectOptions,
    Overload,
    ProfileInfo,
    StreamOptions,
    Tier,
    Timings,
)

_TIERS: Mapping[str, "pb.LatencyTier.ValueType"] = {
    tier: pb.LatencyTier.Value(f"LATENCY_TIER_{tier.upper()}") for tier in get_args(Tier)
}
_OVERLOADS: Mapping[str, "pb.StreamOptions.Overload.ValueType"] = {
    policy: pb.StreamOptions.Overload.Value(f"OVERLOAD_{policy.upper()}") for policy in get_args(Overload)
}


def detect_request(content: bytes, options: DetectOptions) -> pb.DetectRequest:
    """Raises TypeError on an unknown option, ValueError on an unknown tier; values are judged by the server."""
    _check_names("detect", options, DetectOptions)
    return pb.DetectRequest(image=pb.Image(content=content), **_wishes(options))


def stream_options(options: StreamOptions) -> pb.StreamOptions:
    """Raises TypeError on an unknown option, ValueError on an unknown tier or policy."""
    _check_names("stream", options, StreamOptions)
    overload = options.get("on_overload")
    unspecified = pb.StreamOptions.OVERLOAD_UNSPECIFIED
    policy = unspecified if overload is None else _OVERLOADS[_one_of("on_overload", overload, _OVERLOADS)]
    return pb.StreamOptions(on_overload=policy, **_wishes(options))


def _check_names(method: str, options: Mapping[str, object], known: type[DetectOptions]) -> None:
    if unknown := options.keys() - known.__annotations__.keys():
        names = ", ".join(sorted(known.__annotations__))
        raise TypeError(f"{method}() got unexpected options: {', '.join(sorted(unknown))}; it takes {names}")


def _one_of(option: str, value: object, known: Mapping[str, object]) -> str:
    """The value, if it is one of the few that there are."""
    if isinstance(value, str) and value in known:
        return value
    raise ValueError(f"{option} is {value!r}; it must be one of {', '.join(map(repr, known))}")


def _wishes(options: DetectOptions) -> dict[str, Any]:
    """The fields that a call and a stream share."""
    return {
        "model": options.get("model") or "",
        "profile": options.get("profile") or "",
        "latency_tier": _tier(options),
        "latency_budget": _budget(options),
        "min_accuracy": options.get("min_accuracy"),
        "score_threshold": options.get("score_threshold"),
        "max_detections": options.get("max_detections"),
        "priority": options.get("priority"),
    }


def to_result(response: pb.DetectResponse) -> DetectionResult:
    timings = response.timings
    return DetectionResult(
        detections=tuple(map(_to_detection, response.detections)),
        image_size=(response.image_width_px, response.image_height_px),
        model=response.model,
        model_version=response.model_version,
        profile=response.profile,
        selection_reason=_reason_name(response.selection_reason),
        batch_size=response.batch_size,
        timings=Timings(
            decode=_seconds(timings.decode),
            queue=_seconds(timings.queue),
            inference=_seconds(timings.inference),
            postprocess=_seconds(timings.postprocess),
            total=_seconds(timings.total),
            decode_wait=_seconds(timings.decode_wait),
            batch_wait=_seconds(timings.batch_wait),
            respond=_seconds(timings.respond),
        ),
    )


def to_profile(profile: pb.Profile) -> ProfileInfo:
    return ProfileInfo(
        model=profile.model,
        model_version=profile.model_version,
        profile=profile.profile,
        state=_state_name(profile.state),
        error=profile.error,
        labels=tuple(profile.labels),
        average_precision=profile.average_precision,
        average_precision_50=profile.average_precision_50,
        validation_image_count=profile.validation_image_count,
        model_bytes=profile.model_bytes,
        parameter_count=profile.parameter_count,
        mac_count=profile.mac_count,
        expected_latency=_seconds(profile.expected_latency),
        input_size=(profile.input_width_px, profile.input_height_px),
    )


def to_profiles(response: pb.ListProfilesResponse) -> tuple[ProfileInfo, ...]:
    return tuple(map(to_profile, response.profiles))


def _to_detection(detection: pb.Detection) -> Detection:
    box = detection.box
    return Detection(
        label=detection.label,
        label_id=detection.label_id,
        score=detection.score,
        box=Box(box.x_min, box.y_min, box.x_max, box.y_max),
    )


def _reason_name(reason: "pb.SelectionReason.ValueType") -> str:
    if reason not in pb.SelectionReason.values():  # a newer server may have reasons that this client does not know
        reason = pb.SELECTION_REASON_UNSPECIFIED
    return pb.SelectionReason.Name(reason).removeprefix("SELECTION_REASON_").lower()


def _state_name(state: "pb.Profile.State.ValueType") -> str:
    if state not in pb.Profile.State.values():
        state = pb.Profile.STATE_UNSPECIFIED
    return pb.Profile.State.Name(state).removeprefix("STATE_").lower()


def _tier(options: DetectOptions) -> "pb.LatencyTier.ValueType":
    tier = options.get("tier")
    return pb.LATENCY_TIER_UNSPECIFIED if tier is None else _TIERS[_one_of("tier", tier, _TIERS)]


def _budget(options: DetectOptions) -> Duration | None:
    budget = options.get("budget")
    return None if budget is None else to_duration(budget)


def to_duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9
