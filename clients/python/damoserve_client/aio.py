"""The client for asyncio; `client` has the same for ordinary code."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Self, TypeVar, Unpack

import grpc
import grpc.aio

from damoserve.v1 import detection_pb2 as pb
from damoserve.v1.detection_pb2_grpc import DetectionServiceStub, ProfileServiceStub
from damoserve_client.channel import DEFAULT_ADDRESS, DEFAULT_TIMEOUT, call_metadata, channel_options
from damoserve_client.convert import detect_request, read_image, to_profile, to_profiles, to_result
from damoserve_client.errors import from_rpc_error
from damoserve_client.stream import AsyncFrames, Conversation, Frames
from damoserve_client.tracing import with_trace
from damoserve_client.types import (
    DetectionResult,
    DetectOptions,
    FrameAnswer,
    ImageSource,
    ProfileInfo,
    StreamOptions,
)

Response = TypeVar("Response")


class AsyncClient:
    """One connection to a server; make it inside the event loop that uses it, where tasks may share it.

    `credentials` (`grpc.ssl_channel_credentials()`) turn TLS on. `token` is sent with every call; without TLS only to
    this machine, else ValueError is raised. `timeout` is the deadline of every call in seconds; each call can set its
    own. Every call raises a `DamoserveError` when it fails.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self._metadata = call_metadata(address, credentials, token)
        options = channel_options(address)
        self._channel = (
            grpc.aio.secure_channel(address, credentials, options)
            if credentials
            else grpc.aio.insecure_channel(address, options)
        )
        self._detection = DetectionServiceStub(self._channel)
        self._profiles = ProfileServiceStub(self._channel)
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._channel.close()

    async def detect(
        self, image: ImageSource, *, timeout: float | None = None, **options: Unpack[DetectOptions]
    ) -> DetectionResult:
        """Finds the objects in one image, given as the content or the path of a file."""
        request = detect_request(await asyncio.to_thread(read_image, image), options)
        return to_result(await self._call(self._detection.Detect, request, timeout))

    def stream(
        self, frames: Frames | AsyncFrames, *, timeout: float | None = None, **options: Unpack[StreamOptions]
    ) -> AsyncGenerator[FrameAnswer, None]:
        """Finds the objects in the frames of a video; the answers come in the order of the frames.

        `frames` is read ahead of the answers. What it raises is raised here, after the answers to the frames before. A
        frame that fails is an answer; only a stream that fails raises a DamoserveError. Closing the iterator cancels
        the stream. `timeout` is for the whole stream; None: it may last.
        """
        return self._stream(frames, Conversation(options), timeout)

    async def _stream(
        self, frames: Frames | AsyncFrames, conversation: Conversation, timeout: float | None
    ) -> AsyncGenerator[FrameAnswer, None]:
        call = self._detection.DetectStream(
            conversation.requests_async(frames), timeout=timeout, metadata=with_trace(self._metadata)
        )
        try:
            async for response in call:
                yield conversation.answer(response)
        except grpc.RpcError as error:
            raise conversation.failed(error) from error
        finally:
            call.cancel()
        conversation.finish()

    async def profiles(self, model: str | None = None, *, timeout: float | None = None) -> tuple[ProfileInfo, ...]:
        """The profiles of one model or of all, by model, then the most accurate first."""
        request = pb.ListProfilesRequest(model=model or "")
        return to_profiles(await self._call(self._profiles.ListProfiles, request, timeout))

    async def profile(self, name: str, *, model: str | None = None, timeout: float | None = None) -> ProfileInfo:
        """One profile of the server's default model, or of another."""
        request = pb.GetProfileRequest(model=model or "", profile=name)
        return to_profile(await self._call(self._profiles.GetProfile, request, timeout))

    async def wait_until_ready(self, timeout: float) -> None:
        """Waits until the server answers; raises DeadlineExceeded if it does not within `timeout` seconds."""
        await self._call(self._profiles.ListProfiles, pb.ListProfilesRequest(), timeout, wait_for_ready=True)

    async def _call(
        self,
        method: Callable[..., Awaitable[Response]],
        request: object,
        timeout: float | None,
        wait_for_ready: bool = False,
    ) -> Response:
        try:
            return await method(
                request,
                timeout=self._timeout if timeout is None else timeout,
                metadata=with_trace(self._metadata),
                wait_for_ready=wait_for_ready,
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
