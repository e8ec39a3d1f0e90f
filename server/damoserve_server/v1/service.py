"""The services that callers use: detection, of one image or a stream of frames, and the list of profiles."""

from __future__ import annotations  # gRPC's context is generic for type checkers only

import time
from collections.abc import AsyncIterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_server.detection.outcomes import RequestAccounting
from damoserve_server.detection.startup import Startup
from damoserve_server.v1 import convert
from damoserve_server.v1.stream import Streams
from damoserve_server.v1.stream_handler import DetectStreamHandler, StreamCall

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


class DetectionService(pb_grpc.DetectionServiceServicer):
    """Answers `Detect` and `DetectStream`."""

    def __init__(self, startup: Startup, streams: Streams, requests: RequestAccounting) -> None:
        self._startup = startup
        self._streams = streams
        self._requests = requests

    async def Detect(self, request: pb.DetectRequest, context: Context) -> pb.DetectResponse:
        detection = convert.to_request(
            request, time.monotonic(), context.time_remaining(), self._startup.default_budget
        )
        with self._requests.answering([detection]) as results:
            detector = await self._startup.detector(detection.deadline)
            results.append(await detector.detect(detection))
            return convert.to_response(results[0])

    # Not a generator, which the stubs expect: nothing closes one at once when its call ends.
    async def DetectStream(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.DetectStreamRequest], context: Context
    ) -> None:
        startup = self._startup
        call = StreamCall(request_iterator, context, startup.detector, startup.default_budget)
        with closing(DetectStreamHandler(call, self._requests)) as handler:
            await self._streams.run(handler)


class ProfileService(pb_grpc.ProfileServiceServicer):
    """Describes the profiles. gRPC ends calls at their deadline."""

    def __init__(self, startup: Startup) -> None:
        self._startup = startup

    async def ListProfiles(self, request: pb.ListProfilesRequest, context: Context) -> pb.ListProfilesResponse:
        catalogue = (await self._startup.detector()).catalogue
        models = [catalogue.model(request.model)] if request.model else catalogue.models.values()
        return pb.ListProfilesResponse(profiles=[profile for model in models for profile in convert.to_profiles(model)])

    async def GetProfile(self, request: pb.GetProfileRequest, context: Context) -> pb.Profile:
        model = (await self._startup.detector()).catalogue.model(request.model)
        return convert.to_profile(model.name, model.version, model.find(request.profile))
