"""What goes into a call and what comes out, free of protobuf."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal, TypedDict

from damoserve_client.errors import DamoserveError
from damoserve_client.images import ImageSource

__all__ = [
    "Box",
    "DetectOptions",
    "Detection",
    "DetectionResult",
    "Frame",
    "FrameAnswer",
    "ImageSource",
    "Overload",
    "ProfileInfo",
    "StreamOptions",
    "Tier",
    "Timings",
]

Tier = Literal["realtime", "balanced", "accurate"]
Overload = Literal["wait", "drop_oldest"]


class DetectOptions(TypedDict, total=False):
    """The keyword arguments of `detect`; what is left out or None, the server decides.

    >>> options = DetectOptions(tier="realtime", budget=0.1, min_accuracy=0.5)
    >>> with Client("127.0.0.1:50051") as client:
    ...     print(client.detect("smear.jpg", **options).selection_reason)
    most_accurate_in_time
    """

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
    """The keyword arguments of `stream`: those of `detect`, of which `budget` is for each frame, and `on_overload`.

    >>> options = StreamOptions(tier="realtime", budget=0.1, on_overload="drop_oldest")
    >>> with Client("127.0.0.1:50051") as client:
    ...     print([answer.frame_id for answer in client.stream(["smear.jpg"], **options)])
    [0]
    """

    # When frames come faster than they are computed, or than their answers are taken: `wait` slows the frames down,
    # for recordings; `drop_oldest` keeps the newest, for cameras. The server waits if nothing is said.
    on_overload: Overload | None


@dataclass(frozen=True)
class Frame:
    """An image of a stream together with a number or a budget of its own.

    >>> frames = [Frame("smear.jpg", id=700, budget=0.1), "smear.jpg"]
    >>> with Client("127.0.0.1:50051") as client:
    ...     print([answer.frame_id for answer in client.stream(frames)])
    [700, 1]
    """

    image: ImageSource
    # Repeated in the answer; None: the frames are numbered from 0.
    id: int | None = None
    # Seconds that the answer may take from when the server reads the frame; None: the stream's.
    budget: float | None = None


@dataclass(frozen=True)
class Box:
    """A box in pixels of the image as displayed: the origin is the top left corner, and y grows downwards.

    >>> box = Box(40.0, 30.0, 100.0, 90.0)
    >>> box.x_max - box.x_min, box.y_max - box.y_min
    (60.0, 60.0)
    """

    x_min: float
    y_min: float
    x_max: float
    y_max: float


@dataclass(frozen=True)
class Detection:
    """An object that was found: its class, by name and by number, its score from 0 to 1, and its box in pixels.

    >>> with Client("127.0.0.1:50051") as client:
    ...     best = client.detect("smear.jpg").detections[0]
    >>> best.label, best.label_id, best.score, best.box.x_min
    ('RBC', 0, 0.75, 40.0)
    """

    label: str
    label_id: int
    score: float
    box: Box


@dataclass(frozen=True)
class Timings:
    """The seconds that a request spent in each stage of the server; all but `total` add up to that.

    >>> with Client("127.0.0.1:50051") as client:
    ...     timings = client.detect("smear.jpg").timings
    >>> f"{1e3 * timings.inference:.0f} of {1e3 * timings.total:.0f} ms"
    '30 of 38 ms'
    """

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
    """The objects that were found in one image, the best score first, and how the request was served.

    >>> with Client("127.0.0.1:50051") as client:
    ...     result = client.detect("smear.jpg", profile="int8")
    >>> result.profile, result.selection_reason, len(result.detections), result.image_size
    ('int8', 'requested', 3, (200, 150))
    """

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
        """Counts the detections of each class that was found, the most frequent first.

        >>> with Client("127.0.0.1:50051") as client:
        ...     client.detect("smear.jpg").count_by_label()
        {'RBC': 2, 'WBC': 1}
        """
        return dict(Counter(detection.label for detection in self.detections).most_common())


@dataclass(frozen=True)
class FrameAnswer:
    """The end of one frame of a stream: with a result, with an error that is not raised, or dropped.

    >>> with Client("127.0.0.1:50051") as client:
    ...     for answer in client.stream(["smear.jpg", b"no picture"]):
    ...         print(answer.frame_id, answer.result is not None, type(answer.error).__name__)
    0 True NoneType
    1 False InvalidImage
    """

    frame_id: int
    result: DetectionResult | None = None
    # Not raised: the stream goes on.
    error: DamoserveError | None = None
    # Never computed: `server_behind`, `client_behind`, or `unspecified` from a newer server.
    dropped: str | None = None


@dataclass(frozen=True)
class ProfileInfo:
    """A compressed form of a model, and what was measured of it; if it is not active, the measurements may be 0.

    >>> with Client("127.0.0.1:50051") as client:
    ...     info = client.profile("int8")
    >>> info.model, info.labels, info.average_precision, info.active
    ('blood-cells', ('RBC', 'WBC', 'Platelets'), 0.625, True)
    """

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
        """True if the profile is loaded and serves."""
        return self.state == "active"
