"""What is asked for, what is answered, and where the time went."""

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
    """What is asked for. Times are on the monotonic clock; None means the model's default."""

    image: Image
    arrival: float
    deadline: float
    model: str = ""
    profile: str | None = None
    tier: Tier | None = None
    min_accuracy: float = 0.0
    score_threshold: float | None = None
    max_detections: int | None = None
    priority: int = LOWEST_PRIORITY
    """1 is the most urgent."""


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
        """In the order of `metrics.STAGES`."""
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
        """For a worker, or with one for company in the batch."""
        return self.queue + self.batch_wait

    @property
    def total(self) -> float:
        return sum(self.stages)


@dataclass(frozen=True)
class DetectionResult:
    """What was found; boxes are in pixels of an image of `image_size`."""

    detections: Detections
    image_size: Size
    profile: ActiveProfile
    reason: Reason
    batch_size: int
    timings: Timings
