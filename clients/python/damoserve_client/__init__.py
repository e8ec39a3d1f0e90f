"""Talks to a damoserve server.

`Client` is for ordinary code and `AsyncClient` for asyncio. Every error is a `DamoserveError`, which says what to do.

>>> from damoserve_client import Client
>>> with Client("127.0.0.1:50051") as client:
...     result = client.detect("smear.jpg", tier="realtime")
>>> print(result.profile, result.count_by_label())
int8 {'RBC': 2, 'WBC': 1}

The examples of this package stand for a server of the bundled model, and a picture `smear.jpg`; in those of the errors
`client` is a `Client`. The tests run all of them.
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
    InvalidArray,
    InvalidImage,
    InvalidRequest,
    LimitExceeded,
    ModelNotFound,
    NoAnswer,
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
    Overload,
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
    "InvalidArray",
    "InvalidImage",
    "InvalidRequest",
    "LimitExceeded",
    "ModelNotFound",
    "NoAnswer",
    "NotFound",
    "Overload",
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
