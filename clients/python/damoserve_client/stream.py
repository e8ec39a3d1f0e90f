"""What both clients share about streams: frames to messages, messages to answers."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field

import grpc

from damoserve.v1 import detection_pb2 as pb
from damoserve_client.convert import stream_options, to_duration, to_result
from damoserve_client.images import file_content
from damoserve_client.status import Attempt, from_rpc_error, from_status
from damoserve_client.types import Frame, FrameAnswer, ImageSource, StreamOptions

Frames = Iterable[ImageSource | Frame]
AsyncFrames = AsyncIterable[ImageSource | Frame]

_DROPS: dict[int, str] = {
    pb.DetectStreamResponse.DROP_REASON_SERVER_BEHIND: "server_behind",
    pb.DetectStreamResponse.DROP_REASON_CLIENT_BEHIND: "client_behind",
}


@dataclass
class Conversation:
    """One stream. What `frames` raises ends it like a last frame, and is raised after the answers before it."""

    options: StreamOptions
    _taken: int = field(default=0, init=False)
    _sent: int = field(default=0, init=False)
    _error: Exception | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._first = pb.DetectStreamRequest(options=stream_options(self.options))

    def requests(self, frames: Frames) -> Iterator[pb.DetectStreamRequest]:
        yield self._first
        try:
            for frame in frames:
                yield self._request(frame)
        except Exception as error:
            self._error = error

    async def requests_async(self, frames: Frames | AsyncFrames) -> AsyncIterator[pb.DetectStreamRequest]:
        yield self._first
        try:
            if isinstance(frames, AsyncIterable):
                async for frame in frames:
                    yield await asyncio.to_thread(self._request, frame)
            else:
                for frame in frames:
                    yield await asyncio.to_thread(self._request, frame)
        except Exception as error:
            self._error = error

    def answer(self, response: pb.DetectStreamResponse) -> FrameAnswer:
        self._taken += 1
        outcome = response.WhichOneof("outcome")
        return FrameAnswer(
            frame_id=response.frame_id,
            result=to_result(response.result) if outcome == "result" else None,
            error=from_status(response.error) if outcome == "error" else None,
            dropped=_DROPS.get(response.dropped, "unspecified") if outcome == "dropped" else None,
        )

    def finish(self) -> None:
        """Raises what the frames raised."""
        if self._error is not None:
            raise self._error

    def failed(self, error: grpc.RpcError, attempt: Attempt) -> Exception:
        return self._error or from_rpc_error(error, attempt)

    def _request(self, given: ImageSource | Frame) -> pb.DetectStreamRequest:
        frame = given if isinstance(given, Frame) else Frame(given)
        message = pb.Frame(
            id=self._sent if frame.id is None else frame.id,
            image=pb.Image(content=file_content(frame.image)),
            latency_budget=None if frame.budget is None else to_duration(frame.budget),
            answers_taken=self._taken,
        )
        self._sent += 1
        return pb.DetectStreamRequest(frame=message)
