"""The gRPC services: protobuf in, protobuf out."""

from __future__ import annotations  # gRPC's context is generic for type checkers only

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_server import convert
from damoserve_server.detector import Detector
from damoserve_server.errors import DeadlineExpired, ShuttingDown
from damoserve_server.frames import Origin, StreamCaller
from damoserve_server.outcomes import Requests
from damoserve_server.stream import Streams

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]

LOADING_RETRY_SECONDS = 1.0
"""When to try again, for calls whose time ran out while the models were loaded."""


class Startup:
    """Calls that come before the models are loaded wait for them, as long as their deadline allows.

    Those that come while the port is closed wait for that.
    """

    def __init__(self, detector: asyncio.Future[Detector], default_budget: float) -> None:
        """`default_budget`, in seconds, is for calls that have no deadline of their own."""
        self._detector = detector
        self.default_budget = default_budget
        self._closed: asyncio.Event | None = None

    @contextmanager
    def closing(self) -> Iterator[None]:
        """From now on calls wait, and are refused at the end.

        Who is refused calls again at once, and gRPC answers CANCELLED to calls that it has when the port is closed and
        has not handed out. Who waits does not call.
        """
        self._closed = asyncio.Event()
        try:
            yield
        finally:
            self._closed.set()

    async def finished(self, deadline: float | None = None) -> Detector:
        """`deadline` is on the monotonic clock. Raises DeadlineExpired, or ShuttingDown if there is no more to come."""
        if self._closed is not None:
            await self._closed.wait()
            raise ShuttingDown
        try:
            async with asyncio.timeout_at(time.monotonic() + self.default_budget if deadline is None else deadline):
                return await asyncio.shield(self._detector)
        except TimeoutError:
            expired = DeadlineExpired("the time ran out while the models were loaded")
            expired.retry_after = LOADING_RETRY_SECONDS
            raise expired from None


class DetectionService(pb_grpc.DetectionServiceServicer):
    """Finds objects."""

    def __init__(self, startup: Startup, streams: Streams, requests: Requests) -> None:
        self._startup = startup
        self._streams = streams
        self._requests = requests

    async def Detect(self, request: pb.DetectRequest, context: Context) -> pb.DetectResponse:
        default = self._startup.default_budget
        wanted = convert.to_request(request, time.monotonic(), context.time_remaining(), default)
        with self._requests.answering([wanted]) as results:
            detector = await self._startup.finished(wanted.deadline)
            results.append(await detector.detect(wanted))
            return convert.to_response(results[0])

    # Not a generator, which the stubs expect: nothing closes one at once when its call ends.
    async def DetectStream(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.DetectStreamRequest], context: Context
    ) -> None:
        startup = self._startup
        origin = Origin(request_iterator, context, startup.finished, startup.default_budget)
        with closing(StreamCaller(origin, self._requests)) as caller:
            await self._streams.run(caller)


class ProfileService(pb_grpc.ProfileServiceServicer):
    """Describes the profiles. gRPC itself ends calls at their deadline."""

    def __init__(self, startup: Startup) -> None:
        self._startup = startup

    async def ListProfiles(self, request: pb.ListProfilesRequest, context: Context) -> pb.ListProfilesResponse:
        catalogue = (await self._startup.finished()).catalogue
        models = [catalogue.model(request.model)] if request.model else catalogue.models.values()
        return pb.ListProfilesResponse(profiles=[profile for model in models for profile in convert.to_profiles(model)])

    async def GetProfile(self, request: pb.GetProfileRequest, context: Context) -> pb.Profile:
        model = (await self._startup.finished()).catalogue.model(request.model)
        return convert.to_profile(model.name, model.version, model.find(request.profile))
