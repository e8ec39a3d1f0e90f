"""The client for ordinary code; `aio` has the same for asyncio."""

from collections.abc import Callable, Generator
from typing import Self, TypeVar, Unpack

import grpc

from damoserve.v1 import detection_pb2 as pb
from damoserve.v1.detection_pb2_grpc import DetectionServiceStub, ProfileServiceStub
from damoserve_client.channel import DEFAULT_ADDRESS, DEFAULT_TIMEOUT, call_metadata, is_connected, open_channel
from damoserve_client.convert import detect_request, to_profile, to_profiles, to_result
from damoserve_client.images import file_content
from damoserve_client.status import Attempt, from_rpc_error
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
    """A connection to a server, which threads may share.

    `address` is HOST:PORT. `credentials` (`grpc.ssl_channel_credentials()`) turn TLS on. `token` is sent with every
    call; without TLS only to this machine, else ValueError is raised. `timeout` is the deadline of every call in
    seconds; each call can set its own. Nothing is sent before the first call. Every call that fails raises a
    `DamoserveError`; calls that met UNAVAILABLE are tried again before, up to four times in all.

    >>> with Client("127.0.0.1:50051", timeout=5.0) as client:
    ...     print([info.profile for info in client.profiles()])
    ['fp32', 'int8', 'pruned']
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
        self._channel = open_channel(address, credentials)
        self._detection = DetectionServiceStub(self._channel)
        self._profiles = ProfileServiceStub(self._channel)
        self._timeout = timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection. Calls of other threads that are under way raise `Cancelled`.

        >>> client = Client("127.0.0.1:50051")
        >>> client.close()
        """
        self._channel.close()

    def detect(
        self, image: ImageSource, *, timeout: float | None = None, **options: Unpack[DetectOptions]
    ) -> DetectionResult:
        """Finds the objects in one image.

        `image` is a path, the content of a JPEG, PNG, WebP or BMP file, a Pillow image, or an array of RGB
        `[height, width, 3]`, uint8; an array becomes a BMP file, or a PNG above 16 MiB, and loses nothing. `timeout` is
        in seconds. The other options are those of `DetectOptions`; without them the server decides.

        Raises ValueError for an unknown tier, TypeError for an unknown option or what is no image, OSError for a path
        that cannot be read, and a `DamoserveError` when the call fails: `InvalidImage`, `DeadlineExceeded`,
        `Overloaded` and so on.

        >>> with Client("127.0.0.1:50051") as client:
        ...     result = client.detect("smear.jpg", tier="realtime", score_threshold=0.2)
        >>> result.profile, result.count_by_label()
        ('int8', {'RBC': 2, 'WBC': 1})

        With pixels, here of OpenCV's kind (blue first):

        >>> import numpy as np
        >>> bgr = np.zeros((480, 640, 3), np.uint8)
        >>> with Client("127.0.0.1:50051") as client:
        ...     result = client.detect(bgr[..., ::-1], budget=0.1)
        >>> result.image_size
        (640, 480)
        """
        request = detect_request(file_content(image), options)
        return to_result(self._call(self._detection.Detect, request, timeout))

    def stream(
        self, frames: Frames, *, timeout: float | None = None, **options: Unpack[StreamOptions]
    ) -> Generator[FrameAnswer, None, None]:
        """Finds the objects in the frames of a video; the answers come in the order of the frames.

        A frame is an image as for `detect`, or a `Frame`. `frames` is read by another thread, ahead of the answers.
        What it raises is raised here, after the answers to the frames before. A frame that fails is an answer; only a
        stream that fails raises a `DamoserveError`. Closing the iterator cancels the stream. `timeout` is in seconds
        for the whole stream; None: it may last. The other options are those of `StreamOptions`, and raise at once what
        `detect` raises for wrong ones.

        >>> with Client("127.0.0.1:50051") as client:
        ...     for answer in client.stream(["smear.jpg"] * 2, tier="realtime", on_overload="drop_oldest"):
        ...         print(answer.frame_id, answer.error or answer.dropped or answer.result.count_by_label())
        0 {'RBC': 2, 'WBC': 1}
        1 {'RBC': 2, 'WBC': 1}
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
            raise conversation.failed(error, self._attempt(timeout)) from error
        finally:
            call.cancel()
        conversation.finish()

    def profiles(self, model: str | None = None, *, timeout: float | None = None) -> tuple[ProfileInfo, ...]:
        """Lists the profiles of one model, or of all models: by model, then the most accurate first.

        Those that are not active come last. Raises `ModelNotFound` for an unknown model. `timeout` is in seconds.

        >>> with Client("127.0.0.1:50051") as client:
        ...     for info in client.profiles():
        ...         print(info.profile, info.average_precision, info.state)
        fp32 0.625 active
        int8 0.625 active
        pruned 0.625 failed
        """
        request = pb.ListProfilesRequest(model=model or "")
        return to_profiles(self._call(self._profiles.ListProfiles, request, timeout))

    def profile(self, name: str, *, model: str | None = None, timeout: float | None = None) -> ProfileInfo:
        """Tells of one profile of the server's default model, or of another model.

        Raises `ModelNotFound` or `ProfileNotFound`. `timeout` is in seconds.

        >>> with Client("127.0.0.1:50051") as client:
        ...     info = client.profile("int8")
        >>> f"{1e3 * info.expected_latency:.0f} ms, {info.model_bytes / 1e6:.1f} MB"
        '12 ms, 2.5 MB'
        """
        request = pb.GetProfileRequest(model=model or "", profile=name)
        return to_profile(self._call(self._profiles.GetProfile, request, timeout))

    def wait_until_ready(self, timeout: float) -> None:
        """Waits until the server answers, also for one that is only about to start.

        Raises `DeadlineExceeded` if it does not within `timeout` seconds; if nobody does, that is a `NoAnswer`.

        >>> with Client("127.0.0.1:50051") as client:
        ...     client.wait_until_ready(timeout=30.0)
        ...     print("ready")
        ready
        """
        self._call(self._profiles.ListProfiles, pb.ListProfilesRequest(), timeout, wait_for_ready=True)

    def _call(
        self, method: Callable[..., Response], request: object, timeout: float | None, wait_for_ready: bool = False
    ) -> Response:
        timeout = self._timeout if timeout is None else timeout
        try:
            return method(
                request,
                timeout=timeout,
                metadata=with_trace(self._metadata),
                wait_for_ready=wait_for_ready,
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._attempt(timeout)) from error

    def _attempt(self, timeout: float | None) -> Attempt:
        return Attempt(self._address, timeout, lambda: is_connected(self._channel))
