"""Talks to a damoserve server.

with Client("127.0.0.1:50051") as client:
    result = client.detect("smear.jpg", tier="realtime")
    print(result.profile, result.count_by_label())
"""

from damoserve_client.aio import AsyncClient
from damoserve_client.channel import DEFAULT_ADDRESS, DEFAULT_TIMEOUT
from damoserve_client.client import Client
from damoserve_client.errors import (
    AccuracyUnavailable,
    Cancelled,
    DamoserveError,
    DeadlineExceeded,
    FailedPrecondition,
    Failure,
    InvalidImage,
    InvalidRequest,
    LimitExceeded,
    ModelNotFound,
    NotFound,
    Overloaded,
    PermissionDenied,
    ProfileNotFound,
    ProfileUnavailable,
    ServerFault,
    Unauthenticated,
    Unavailable,
)
from damoserve_client.types import (
    Box,
    Detection,
    DetectionResult,
    DetectOptions,
    Frame,
    FrameAnswer,
    ImageSource,
    ProfileInfo,
    StreamOptions,
    Tier,
    Timings,
)

__all__ = [
    "DEFAULT_ADDRESS",
    "DEFAULT_TIMEOUT",
    "AccuracyUnavailable",
    "AsyncClient",
    "Box",
    "Cancelled",
    "Client",
    "DamoserveError",
    "DeadlineExceeded",
    "DetectOptions",
    "Detection",
    "DetectionResult",
    "FailedPrecondition",
    "Failure",
    "Frame",
    "FrameAnswer",
    "ImageSource",
    "InvalidImage",
    "InvalidRequest",
    "LimitExceeded",
    "ModelNotFound",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "ProfileInfo",
    "ProfileNotFound",
    "ProfileUnavailable",
    "ServerFault",
    "StreamOptions",
    "Tier",
    "Timings",
    "Unauthenticated",
    "Unavailable",
]
