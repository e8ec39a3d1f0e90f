"""What goes into a call and what comes out, free of protobuf."""

import os
from collections import Counter
from dataclasses import dataclass
from typing import Literal, TypedDict

from damoserve_client.errors import DamoserveError

ImageSource = bytes | str | os.PathLike[str]
"""The content of a JPEG, PNG, WebP or BMP file, or the path of one."""

Tier = Literal["realtime", "balanced", "accurate"]


class DetectOptions(TypedDict, total=False):
    """The keyword arguments of `detect`. Left out or None: the server decides."""

    model: str | None
    # Never replaced by another; at most one of `profile` and `tier`.
    profile: str | None
    # How quick the answer should be; the server picks the most accurate profile that is expected to make it.
    tier: Tier | None
    # Seconds that the answer may take; the call's timeout counts as well, the smaller wins.
    budget: float | None
    # The lowest average precision, 0 to 1, that the serving profile may have.
    min_accuracy: float | None
    # Detections with a lower score, 0 to 1, are left out.
    score_threshold: float | None
    # At most so many of the best detections, 1 to 1000.
    max_detections: int | None
    # 1, the most urgent, to 5, the default: goes before others that have as much time left.
    priority: int | None


class StreamOptions(DetectOptions, total=False):
    """The keyword arguments of `stream`; `budget` is that of each frame."""

    # When frames come faster than they are computed, or than their answers are taken: `wait` slows the frames down,
    # for recordings; `drop_oldest` keeps the newest, for cameras. The server waits if nothing is said.
    on_overload: Literal["wait", "drop_oldest"] | None


@dataclass(frozen=True)
class Frame:
    """One image of a stream, where an image alone does not say enough."""

    image: ImageSource
    # Repeated in the answer; None: the frames are numbered from 0.
    id: int | None = None
    # Seconds that the answer may take from when the server reads the frame; None: the stream's.
    budget: float | None = None


@dataclass(frozen=True)
class Box:
    """A box in pixels of the displayed image; the origin is its top left corner."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


@dataclass(frozen=True)
class Detection:
    """One object; the score is a confidence from 0 to 1."""

    label: str
    label_id: int
    score: float
    box: Box


@dataclass(frozen=True)
class Timings:
    """Seconds that a request spent in each stage of the server; all but `total` add up to it."""

    decode: float
    queue: float
    inference: float
    postprocess: float
    total: float
    # 0 from an older server, which does not tell. Until decoding began; until the batch was full; until the answer.
    decode_wait: float = 0.0
    batch_wait: float = 0.0
    respond: float = 0.0


@dataclass(frozen=True)
class DetectionResult:
    """What was found in one image, best score first, and how it was served."""

    detections: tuple[Detection, ...]
    # Width and height in pixels of the image as a viewer displays it, the frame of the boxes.
    image_size: tuple[int, int]
    model: str
    model_version: int
    profile: str
    # `requested`, `most_accurate_in_time`, `quickest`, or `unspecified` from a newer server.
    selection_reason: str
    batch_size: int
    timings: Timings

    def count_by_label(self) -> dict[str, int]:
        """The number of detections of each class that was found, the most frequent first."""
        return dict(Counter(detection.label for detection in self.detections).most_common())


@dataclass(frozen=True)
class FrameAnswer:
    """How one frame of a stream ended; one of the last three is set."""

    frame_id: int
    result: DetectionResult | None = None
    # Not raised: the stream goes on.
    error: DamoserveError | None = None
    # Never computed: `server_behind`, `client_behind`, or `unspecified` from a newer server.
    dropped: str | None = None


@dataclass(frozen=True)
class ProfileInfo:
    """One compressed form of a model. Of a profile that is not active, the measurements may be 0."""

    model: str
    model_version: int
    profile: str
    # `active`, `failed`, `loading`, `unloaded`, or `unspecified` from a newer server.
    state: str
    # Why the profile failed; otherwise empty.
    error: str
    labels: tuple[str, ...]
    # On the validation images, averaged over IoU 0.50 to 0.95 and at IoU 0.50; 0 to 1.
    average_precision: float
    average_precision_50: float
    validation_image_count: int
    model_bytes: int
    parameter_count: int
    # Multiply-accumulate operations for one image.
    mac_count: int
    # Seconds the network is expected to take for one image on this server.
    expected_latency: float
    # Width and height in pixels that images are stretched to.
    input_size: tuple[int, int]

    @property
    def active(self) -> bool:
        return self.state == "active"
