"""The messages of a detection stream: frames are made of those that come in, and of answers those that go out."""

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
    """One frame as it was read. Times are on the monotonic clock."""

    identifier: int
    request: DetectionRequest | DamoserveError
    """The request in the frame, or what was wrong with it."""
    arrival: float
    deadline: float
    tracker: RequestTracker


FrameSlot = Slot[Frame, pb.DetectStreamResponse]
FrameWindow = Window[Frame, pb.DetectStreamResponse]


@dataclass(frozen=True)
class StreamCall:
    """One call of DetectStream."""

    messages: AsyncIterator[pb.DetectStreamRequest]
    context: Context
    ready: Callable[[], Awaitable[Detector]]
    """Waits until the models are loaded, and returns the detector."""
    budget: float
    """Seconds for frames without a budget, where the stream's options set none either."""


@dataclass
class DetectStreamHandler:
    """Reads and answers the messages of one stream. Frames that are open when it is closed count as cancelled."""

    call: StreamCall
    requests: RequestAccounting
    _detector: Detector = field(init=False)
    _unended: dict[RequestTracker, None] = field(default_factory=dict)

    async def frames(self, window: FrameWindow) -> AsyncIterator[tuple[Frame, int | None]]:
        """Reads the options, then yields each frame with how many answers the client has taken.

        Raises StreamOutOfOrder, ModelNotFound, ProfileNotFound, and what `ready` or the options raise.
        """
        call = self.call
        first = await anext(call.messages, None)
        if first is None:
            return
        _require("options", first, "the first message of a stream has to carry its options, and no other")
        options = first.options
        template = convert.to_template(options, time.monotonic(), call.context.time_remaining())
        budget = convert.frame_budget(options, call.budget)
        window.drop_oldest = convert.OVERLOADS[options.on_overload]
        self._detector = await call.ready()
        self._check_names(options)
        async for request in call.messages:
            _require("frame", request, "every message of a stream but the first has to carry a frame")
            answers_taken = request.frame.answers_taken if request.frame.HasField("answers_taken") else None
            yield self._read_frame(request.frame, template, budget), answers_taken

    async def compute(self, frame: Frame) -> pb.DetectStreamResponse:
        try:
            with current.get().part("frame", frame.identifier, frame.arrival):
                if isinstance(frame.request, DamoserveError):
                    raise frame.request
                result = await self._detector.detect(frame.request)
            answer = pb.DetectStreamResponse(frame_id=frame.identifier, result=convert.to_response(result))
        except Exception as error:
            return self._refused(frame, to_known(error, f"frame {frame.identifier}"))
        self._take_tracker(frame).answered(result)
        return answer

    def _check_names(self, options: pb.StreamOptions) -> None:
        """Raises ModelNotFound or ProfileNotFound. Keeps no model: it may be replaced while the stream is open."""
        model = self._detector.catalogue.model(options.model)
        if options.profile:
            model.find(options.profile)

    def _refused(self, frame: Frame, error: DamoserveError) -> pb.DetectStreamResponse:
        self.requests.count_reason(error)
        self._take_tracker(frame).failed(error)
        return pb.DetectStreamResponse(frame_id=frame.identifier, error=to_status(error))

    async def send(self, slot: FrameSlot) -> None:
        if slot.dropped is not None:
            self._take_tracker(slot.frame).dropped()
            outcome = f"dropped_{slot.dropped}_behind"
            with current.get().part("frame", slot.frame.identifier, slot.frame.arrival) as record:
                record.dropped(outcome)
            answer = pb.DetectStreamResponse(frame_id=slot.frame.identifier, dropped=convert.DROPS[slot.dropped])
        else:
            assert slot.answer is not None
            answer = slot.answer
            outcome = "answered" if answer.HasField("result") else "refused"
        await self.call.context.write(answer)
        self.requests.metrics.frames.labels(outcome).inc()

    def close(self) -> None:
        """Counts the frames that are open as cancelled. Nothing of the stream may be computed any more."""
        for tracker in self._unended:
            tracker.failed(asyncio.CancelledError())

    def _read_frame(self, frame: pb.Frame, template: DetectionRequest, budget: float) -> Frame:
        now = time.monotonic()
        checked: DetectionRequest | DamoserveError
        try:
            request = checked = convert.to_frame(frame, template, now, budget)
        except DamoserveError as error:
            request, checked = replace(template, arrival=now, deadline=now), error
        tracker = self.requests.track(request)
        self._unended[tracker] = None
        return Frame(frame.id, checked, now, request.deadline, tracker)

    def _take_tracker(self, frame: Frame) -> RequestTracker:
        del self._unended[frame.tracker]
        return frame.tracker


def _require(kind: str, request: pb.DetectStreamRequest, message: str) -> None:
    if request.WhichOneof("message") != kind:
        raise StreamOutOfOrder("message", message)
