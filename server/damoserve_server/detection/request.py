"""A request, its result and the seconds of each stage, as plain objects: nothing below knows of a protocol."""

from dataclasses import dataclass

from damoserve_profiles.imaging import Size
from damoserve_profiles.postprocess import Detections
from damoserve_server.inputs.images import Image
from damoserve_server.models.catalogue import ActiveProfile
from damoserve_server.scheduling.policy import LOWEST_PRIORITY
from damoserve_server.scheduling.selection import Reason, Tier

MAX_DETECTIONS = 1000
"""The largest `max_detections` that a request may ask for, whichever protocol it comes by."""


@dataclass(frozen=True)
class DetectionRequest:
    """One image, and what its caller allows. Times are on the monotonic clock."""

    image: Image
    arrival: float
    """Time at which the request came."""
    deadline: float
    """Time after which no answer is of use."""
    model: str = ""
    """Name of the model; empty for the default model."""
    profile: str | None = None
    """Name of the profile that is to serve; None lets the server choose."""
    tier: Tier | None = None
    """Latency tier; None for the server's default, or where a profile is named."""
    min_accuracy: float = 0.0
    """Least average precision, 0 to 1, of a profile that may serve."""
    score_threshold: float | None = None
    """Least score, 0 to 1, of a detection; None for the model's default."""
    max_detections: int | None = None
    """Most detections in the answer; None for the model's default."""
    priority: int = LOWEST_PRIORITY
    """Urgency among those that wait; 1 is the most urgent."""


@dataclass(frozen=True)
class Timings:
    """Seconds in each stage, from the arrival to the answer; the next begins where one ends."""

    decode_wait: float
    decode: float
    queue: float
    batch_wait: float
    inference: float
    postprocess: float
    respond: float

    @property
    def stages(self) -> tuple[float, ...]:
        """Seconds of every stage, in the order of `metrics.STAGES`."""
        return (
            self.decode_wait,
            self.decode,
            self.queue,
            self.batch_wait,
            self.inference,
            self.postprocess,
            self.respond,
        )

    @property
    def waiting(self) -> float:
        """Seconds that the request waited for a worker, or with a worker that was held for a larger batch."""
        return self.queue + self.batch_wait

    @property
    def total(self) -> float:
        """Seconds from the arrival to the answer."""
        return sum(self.stages)


@dataclass(frozen=True)
class DetectionResult:
    """The objects that were found, and how."""

    detections: Detections
    """Boxes, scores and labels; boxes are in pixels of the image."""
    image_size: Size
    """Size of the image as it is displayed."""
    profile: ActiveProfile
    """The profile that served."""
    reason: Reason
    """The reason why it did."""
    batch_size: int
    """Images that were computed together with this one, itself included."""
    timings: Timings
