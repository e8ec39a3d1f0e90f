"""The client for asyncio; `client` has the same for ordinary code."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Self, TypeVar, Unpack

import grpc
import grpc.aio

from damoserve.v1 import detection_pb2 as pb
from damoserve.v1.detection_pb2_grpc import DetectionServiceStub, ProfileServiceStub
from damoserve_client.channel import DEFAULT_ADDRESS, DEFAULT_TIMEOUT, call_metadata, channel_options
from damoserve_client.convert import detect_request, to_profile, to_profiles, to_result
from damoserve_client.images import file_content
from damoserve_client.status import Attempt, from_rpc_error
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
    """A connection to a server for asyncio; make it inside the event loop that uses it, where tasks may share it.

    `address` is HOST:PORT. `credentials` (`grpc.ssl_channel_credentials()`) turn TLS on. `token` is sent with every
    call; without TLS only to this machine, else ValueError is raised. `timeout` is the deadline of every call in
    seconds; each call can set its own. Nothing is sent before the first call. Every call that fails raises a
    `DamoserveError`; calls that met UNAVAILABLE are tried again before, up to four times in all.

    >>> async def main():
    ...     async with AsyncClient("127.0.0.1:50051") as client:
    ...         results = await asyncio.gather(*(client.detect("smear.jpg", tier="realtime") for _ in range(8)))
    ...     return len(results)
    >>> asyncio.run(main())
    8
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self._address = address
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
        """Ends the connection. Calls that are under way raise `Cancelled`.

        >>> async def main():
        ...     client = AsyncClient("127.0.0.1:50051")
        ...     await client.close()
        >>> asyncio.run(main())
        """
        await self._channel.close()

    async def detect(
        self, image: ImageSource, *, timeout: float | None = None, **options: Unpack[DetectOptions]
    ) -> DetectionResult:
        """Finds the objects in one image; `Client.detect` says what an image is and what is raised.

        A file is read, and pixels are packed, in another thread. `timeout` is in seconds. The other options are those
        of `DetectOptions`; without them the server decides.

        >>> async def main():
        ...     async with AsyncClient("127.0.0.1:50051") as client:
        ...         return await client.detect("smear.jpg", tier="realtime")
        >>> asyncio.run(main()).profile
        'int8'
        """
        request = detect_request(await asyncio.to_thread(file_content, image), options)
        return to_result(await self._call(self._detection.Detect, request, timeout))

    def stream(
        self, frames: Frames | AsyncFrames, *, timeout: float | None = None, **options: Unpack[StreamOptions]
    ) -> AsyncGenerator[FrameAnswer, None]:
        """Finds the objects in the frames of a video; the answers come in the order of the frames.

        A frame is an image as for `detect`, or a `Frame`; `frames` may be asynchronous, and is read ahead of the
        answers. What it raises is raised here, after the answers to the frames before. A frame that fails is an answer;
        only a stream that fails raises a `DamoserveError`. Closing the iterator cancels the stream. `timeout` is in
        seconds for the whole stream; None: it may last. The other options are those of `StreamOptions`, and raise at
        once what `detect` raises for wrong ones.

        >>> async def main():
        ...     async with AsyncClient("127.0.0.1:50051") as client:
        ...         return [answer.frame_id async for answer in client.stream(["smear.jpg"] * 3, budget=0.1)]
        >>> asyncio.run(main())
        [0, 1, 2]
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
            raise conversation.failed(error, self._attempt(timeout)) from error
        finally:
            call.cancel()
        conversation.finish()

    async def profiles(self, model: str | None = None, *, timeout: float | None = None) -> tuple[ProfileInfo, ...]:
        """Lists the profiles of one model, or of all models: by model, then the most accurate first.

        Those that are not active come last. Raises `ModelNotFound` for an unknown model. `timeout` is in seconds.

        >>> async def main():
        ...     async with AsyncClient("127.0.0.1:50051") as client:
        ...         return [info.profile for info in await client.profiles() if info.active]
        >>> asyncio.run(main())
        ['fp32', 'int8']
        """
        request = pb.ListProfilesRequest(model=model or "")
        return to_profiles(await self._call(self._profiles.ListProfiles, request, timeout))

    async def profile(self, name: str, *, model: str | None = None, timeout: float | None = None) -> ProfileInfo:
        """Tells of one profile of the server's default model, or of another model.

        Raises `ModelNotFound` or `ProfileNotFound`. `timeout` is in seconds.

        >>> async def main():
        ...     async with AsyncClient("127.0.0.1:50051") as client:
        ...         return await client.profile("int8", model="blood-cells")
        >>> asyncio.run(main()).input_size
        (416, 352)
        """
        request = pb.GetProfileRequest(model=model or "", profile=name)
        return to_profile(await self._call(self._profiles.GetProfile, request, timeout))

    async def wait_until_ready(self, timeout: float) -> None:
        """Waits until the server answers, also for one that is only about to start.

        Raises `DeadlineExceeded` if it does not within `timeout` seconds; if nobody does, that is a `NoAnswer`.

        >>> async def main():
        ...     async with AsyncClient("127.0.0.1:50051") as client:
        ...         await client.wait_until_ready(timeout=30.0)
        ...         return "ready"
        >>> asyncio.run(main())
        'ready'
        """
        await self._call(self._profiles.ListProfiles, pb.ListProfilesRequest(), timeout, wait_for_ready=True)

    async def _call(
        self,
        method: Callable[..., Awaitable[Response]],
        request: object,
        timeout: float | None,
        wait_for_ready: bool = False,
    ) -> Response:
        timeout = self._timeout if timeout is None else timeout
        try:
            return await method(
                request,
                timeout=timeout,
                metadata=with_trace(self._metadata),
                wait_for_ready=wait_for_ready,
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._attempt(timeout)) from error

    def _attempt(self, timeout: float | None) -> Attempt:
        return Attempt(self._address, timeout, lambda: self._channel.get_state() is grpc.ChannelConnectivity.READY)
