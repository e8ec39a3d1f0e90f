"""The gRPC services: protobuf in, protobuf out."""

from __future__ import annotations  # gRPC's context is generic for type checkers only

import asyncio
import time
from typing import TYPE_CHECKING, Any

from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_server import convert
from damoserve_server.detector import Detector

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


class DetectionService(pb_grpc.DetectionServiceServicer):
    """Calls that come before the models are loaded wait for them, as long as their deadline allows."""

    def __init__(self, detector: asyncio.Future[Detector]) -> None:
        self._detector = detector

    async def Detect(self, request: pb.DetectRequest, context: Context) -> pb.DetectResponse:
        wanted = convert.to_request(request, time.monotonic(), context.time_remaining())
        detector = await asyncio.shield(self._detector)
        return convert.to_response(await detector.detect(wanted))


class ProfileService(pb_grpc.ProfileServiceServicer):
    """Calls that come before the models are loaded wait for them."""

    def __init__(self, detector: asyncio.Future[Detector]) -> None:
        self._detector = detector

    async def ListProfiles(self, request: pb.ListProfilesRequest, context: Context) -> pb.ListProfilesResponse:
        catalogue = (await asyncio.shield(self._detector)).catalogue
        models = [catalogue.model(request.model)] if request.model else catalogue.models.values()
        return pb.ListProfilesResponse(profiles=[profile for model in models for profile in convert.to_profiles(model)])

    async def GetProfile(self, request: pb.GetProfileRequest, context: Context) -> pb.Profile:
        model = (await asyncio.shield(self._detector)).catalogue.model(request.model)
        return convert.to_profile(model, model.find(request.profile))
