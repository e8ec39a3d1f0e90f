"""The caller's end of a detection stream: messages to frames, and answers to messages."""

from __future__ import annotations  # gRPC's context is generic for type checkers only

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from damoserve.v1 import detection_pb2 as pb
from damoserve_server.detection.detector import Detector
from damoserve_server.detection.outcomes import RequestAccounting, RequestTracker
from damoserve_server.detection.request import DetectionRequest
from damoserve_server.errors import DamoserveError, StreamOutOfOrder
from damoserve_server.rpc.status import to_known, to_status
from damoserve_server.telemetry.records import current
from damoserve_server.v1 import convert
from damoserve_server.v1.window import Slot, Window

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Frame:
    """One frame as it was read: the request in it, or why there is none."""

    identifier: int
    request: DetectionRequest | DamoserveError
    arrival: float
    deadline: float
    tracker: RequestTracker


FrameSlot = Slot[Frame, pb.DetectStreamResponse]
FrameWindow = Window[Frame, pb.DetectStreamResponse]


@dataclass(frozen=True)
class StreamCall:
    """One call of DetectStream. `ready` gives the detector, `budget` is for frames that have none, in seconds."""

    messages: AsyncIterator[pb.DetectStreamRequest]
    context: Context
    ready: Callable[[], Awaitable[Detector]]
    budget: float


@dataclass
class DetectStreamHandler:
    """The caller of one stream. Frames that have no end when it is closed are counted as cancelled."""

    origin: StreamCall
    requests: RequestAccounting
    _detector: Detector = field(init=False)
    _open: dict[RequestTracker, None] = field(default_factory=dict)

    async def frames(self, window: FrameWindow) -> AsyncIterator[tuple[Frame, int | None]]:
        """Raises StreamOutOfOrder, ModelNotFound, ProfileNotFound, and what `ready` or the options raise."""
        origin = self.origin
        first = await anext(origin.messages, None)
        if first is None:
            return
        _expect("options", first, "the first message of a stream has to carry its options, and no other")
        options = first.options
        template = convert.to_template(options, time.monotonic(), origin.context.time_remaining())
        budget = convert.frame_budget(options, origin.budget)
        window.drop_oldest = convert.OVERLOADS[options.on_overload]
        self._detector = await origin.ready()
        self._check_names(options)
        async for request in origin.messages:
            _expect("frame", request, "every message of a stream but the first has to carry a frame")
            taken = request.frame.answers_taken if request.frame.HasField("answers_taken") else None
            yield self._arrived(request.frame, template, budget), taken

    async def compute(self, frame: Frame) -> pb.DetectStreamResponse:
        try:
            with current.get().part("frame", frame.identifier, frame.arrival):
                if isinstance(frame.request, DamoserveError):
                    raise frame.request
                result = await self._detector.detect(frame.request)
            answer = pb.DetectStreamResponse(frame_id=frame.identifier, result=convert.to_response(result))
        except Exception as error:
            return self._refusal(frame, to_known(error, f"frame {frame.identifier}"))
        self._ended(frame).answered(result)
        return answer

    def _check_names(self, options: pb.StreamOptions) -> None:
        """Keeps nothing of the model: it may be replaced while the stream is open."""
        model = self._detector.catalogue.model(options.model)
        if options.profile:
            model.find(options.profile)

    def _refusal(self, frame: Frame, error: DamoserveError) -> pb.DetectStreamResponse:
        self.requests.count_reason(error)
        self._ended(frame).failed(error)
        return pb.DetectStreamResponse(frame_id=frame.identifier, error=to_status(error))

    async def send(self, slot: FrameSlot) -> None:
        if slot.dropped is not None:
            self._ended(slot.frame).dropped()
            outcome = f"dropped_{slot.dropped}_behind"
            with current.get().part("frame", slot.frame.identifier, slot.frame.arrival) as record:
                record.dropped(outcome)
            answer = pb.DetectStreamResponse(frame_id=slot.frame.identifier, dropped=convert.DROPS[slot.dropped])
        else:
            assert slot.answer is not None
            answer = slot.answer
            outcome = "answered" if answer.HasField("result") else "refused"
        await self.origin.context.write(answer)
        self.requests.metrics.frames.labels(outcome).inc()

    def close(self) -> None:
        """The stream has ended, and nothing of it is computed any more."""
        for tracker in self._open:
            tracker.failed(asyncio.CancelledError())

    def _arrived(self, frame: pb.Frame, template: DetectionRequest, budget: float) -> Frame:
        now = time.monotonic()
        outcome: DetectionRequest | DamoserveError
        try:
            request = outcome = convert.to_frame(frame, template, now, budget)
        except DamoserveError as error:
            request, outcome = replace(template, arrival=now, deadline=now), error
        tracker = self.requests.track(request)
        self._open[tracker] = None
        return Frame(frame.id, outcome, now, request.deadline, tracker)

    def _ended(self, frame: Frame) -> RequestTracker:
        del self._open[frame.tracker]
        return frame.tracker


def _expect(kind: str, request: pb.DetectStreamRequest, message: str) -> None:
    if request.WhichOneof("message") != kind:
        raise StreamOutOfOrder("message", message)
