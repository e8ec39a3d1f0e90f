"""The caller's end of a detection stream: messages to frames, and answers to messages."""

from __future__ import annotations  # gRPC's context is generic for type checkers only

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from damoserve.v1 import detection_pb2 as pb
from damoserve_server import convert
from damoserve_server.detector import DetectionRequest, Detector
from damoserve_server.errors import DamoserveError, StreamOutOfOrder
from damoserve_server.metrics import Metrics
from damoserve_server.status import to_known, to_status
from damoserve_server.telemetry.records import current
from damoserve_server.window import Slot, Window

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Frame:
    """One frame as it was read; `wanted` is why it cannot be one if that is so."""

    identifier: int
    wanted: DetectionRequest | DamoserveError
    arrival: float
    deadline: float


FrameSlot = Slot[Frame, pb.DetectStreamResponse]
FrameWindow = Window[Frame, pb.DetectStreamResponse]


@dataclass
class StreamCaller:
    """One call of DetectStream. `ready` gives the detector, `budget` is for frames that have none, in seconds."""

    requests: AsyncIterator[pb.DetectStreamRequest]
    context: Context
    ready: Callable[[], Awaitable[Detector]]
    budget: float
    metrics: Metrics
    _detector: Detector = field(init=False)

    async def frames(self, window: FrameWindow) -> AsyncIterator[tuple[Frame, int | None]]:
        """Raises StreamOutOfOrder, ModelNotFound, ProfileNotFound, and what `ready` or the options raise."""
        first = await anext(self.requests, None)
        if first is None:
            return
        _expect("options", first, "the first message of a stream has to carry its options, and no other")
        options = first.options
        template = convert.to_template(options, time.monotonic(), self.context.time_remaining())
        budget = convert.frame_budget(options, self.budget)
        window.drop_oldest = convert.OVERLOADS[options.on_overload]
        self._detector = await self.ready()
        model = self._detector.catalogue.model(options.model)
        if options.profile:
            model.find(options.profile)
        async for request in self.requests:
            _expect("frame", request, "every message of a stream but the first has to carry a frame")
            taken = request.frame.answers_taken if request.frame.HasField("answers_taken") else None
            yield _arrived(request.frame, template, budget), taken

    async def compute(self, frame: Frame) -> pb.DetectStreamResponse:
        try:
            with current.get().part("frame", frame.identifier, frame.arrival):
                if isinstance(frame.wanted, DamoserveError):
                    raise frame.wanted
                result = await self._detector.detect(frame.wanted)
        except Exception as error:
            return self._refusal(frame, to_known(error, f"frame {frame.identifier}"))
        return pb.DetectStreamResponse(frame_id=frame.identifier, result=convert.to_response(result))

    def _refusal(self, frame: Frame, error: DamoserveError) -> pb.DetectStreamResponse:
        self.metrics.refused.labels(error.reason).inc()
        return pb.DetectStreamResponse(frame_id=frame.identifier, error=to_status(error))

    async def send(self, slot: FrameSlot) -> None:
        if slot.dropped is not None:
            outcome = f"dropped_{slot.dropped}_behind"
            with current.get().part("frame", slot.frame.identifier, slot.frame.arrival) as record:
                record.known["outcome"] = outcome
            answer = pb.DetectStreamResponse(frame_id=slot.frame.identifier, dropped=convert.DROPS[slot.dropped])
        else:
            assert slot.answer is not None
            answer = slot.answer
            outcome = "answered" if answer.HasField("result") else "refused"
        await self.context.write(answer)
        self.metrics.frames.labels(outcome).inc()


def _expect(kind: str, request: pb.DetectStreamRequest, message: str) -> None:
    if request.WhichOneof("message") != kind:
        raise StreamOutOfOrder("message", message)


def _arrived(frame: pb.Frame, template: DetectionRequest, budget: float) -> Frame:
    now = time.monotonic()
    try:
        wanted = convert.to_frame(frame, template, now, budget)
    except DamoserveError as error:
        return Frame(frame.id, error, now, now)
    return Frame(frame.id, wanted, now, wanted.deadline)
