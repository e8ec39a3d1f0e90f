"""The client for ordinary code; `aio` has the same for asyncio."""

from collections.abc import Callable, Generator
from typing import Self, TypeVar, Unpack

import grpc

from damoserve.v1 import detection_pb2 as pb
from damoserve.v1.detection_pb2_grpc import DetectionServiceStub, ProfileServiceStub
from damoserve_client.channel import DEFAULT_ADDRESS, DEFAULT_TIMEOUT, call_metadata, open_channel
from damoserve_client.convert import detect_request, read_image, to_profile, to_profiles, to_result
from damoserve_client.errors import from_rpc_error
from damoserve_client.stream import Conversation, Frames
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


class Client:
    """One connection to a server; threads may share it.

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
        self._channel = open_channel(address, credentials)
        self._detection = DetectionServiceStub(self._channel)
        self._profiles = ProfileServiceStub(self._channel)
        self._timeout = timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def detect(
        self, image: ImageSource, *, timeout: float | None = None, **options: Unpack[DetectOptions]
    ) -> DetectionResult:
        """Finds the objects in one image, given as the content or the path of a file."""
        request = detect_request(read_image(image), options)
        return to_result(self._call(self._detection.Detect, request, timeout))

    def stream(
        self, frames: Frames, *, timeout: float | None = None, **options: Unpack[StreamOptions]
    ) -> Generator[FrameAnswer, None, None]:
        """Finds the objects in the frames of a video; the answers come in the order of the frames.

        `frames` is read by another thread, ahead of the answers. What it raises is raised here, after the answers to
        the frames before. A frame that fails is an answer; only a stream that fails raises a DamoserveError. Closing
        the iterator cancels the stream. `timeout` is for the whole stream; None: it may last.
        """
        return self._stream(frames, Conversation(options), timeout)

    def _stream(
        self, frames: Frames, conversation: Conversation, timeout: float | None
    ) -> Generator[FrameAnswer, None, None]:
        call = self._detection.DetectStream(
            conversation.requests(frames), timeout=timeout, metadata=with_trace(self._metadata)
        )
        try:
            for response in call:
                yield conversation.answer(response)
        except grpc.RpcError as error:
            raise conversation.failed(error) from error
        finally:
            call.cancel()
        conversation.finish()

    def profiles(self, model: str | None = None, *, timeout: float | None = None) -> tuple[ProfileInfo, ...]:
        """The profiles of one model or of all, by model, then the most accurate first."""
        request = pb.ListProfilesRequest(model=model or "")
        return to_profiles(self._call(self._profiles.ListProfiles, request, timeout))

    def profile(self, name: str, *, model: str | None = None, timeout: float | None = None) -> ProfileInfo:
        """One profile of the server's default model, or of another."""
        request = pb.GetProfileRequest(model=model or "", profile=name)
        return to_profile(self._call(self._profiles.GetProfile, request, timeout))

    def wait_until_ready(self, timeout: float) -> None:
        """Waits until the server answers; raises DeadlineExceeded if it does not within `timeout` seconds."""
        self._call(self._profiles.ListProfiles, pb.ListProfilesRequest(), timeout, wait_for_ready=True)

    def _call(
        self, method: Callable[..., Response], request: object, timeout: float | None, wait_for_ready: bool = False
    ) -> Response:
        try:
            return method(
                request,
                timeout=self._timeout if timeout is None else timeout,
                metadata=with_trace(self._metadata),
                wait_for_ready=wait_for_ready,
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
