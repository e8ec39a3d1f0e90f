"""The methods of the protocol that are offered; each is short, and what it does is in the module that it names."""

from __future__ import annotations  # gRPC's context is generic for type checkers only

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Set
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from damoserve.kserve.v2 import inference_pb2 as pb
from damoserve_server.configuration.settings import Settings, usable_cores
from damoserve_server.detection.outcomes import RequestAccounting
from damoserve_server.detection.startup import Startup
from damoserve_server.errors import DamoserveError, NotFound, NotOffered, TooManyStreams
from damoserve_server.kserve import describe, encode, server_settings
from damoserve_server.kserve.infer import InferHandler
from damoserve_server.kserve.statistics import Statistics
from damoserve_server.kserve.streaming import in_order
from damoserve_server.kserve.targets import all_targets, find_target
from damoserve_server.models.catalogue import Catalogue
from damoserve_server.rpc.status import to_known
from damoserve_server.telemetry.records import current

if TYPE_CHECKING:
    import grpc

    Context = grpc.aio.ServicerContext[Any, Any]


PARAMETERS_OF_LOAD: Set[str] = frozenset()
"""Those that a request to load may have: a model is loaded as its repository has it."""
PARAMETERS_OF_UNLOAD: Set[str] = frozenset({"unload_dependents"})
"""Those that a request to unload may have. Triton's client always sends it, and here no model depends on another."""


class Administration(Protocol):
    """Changes what is loaded. Both methods raise DamoserveError, and return when the change is done."""

    async def load(self, model: str) -> None: ...

    async def unload(self, model: str) -> None: ...


class InferenceService:
    """The methods by their names in the protocol."""

    def __init__(
        self,
        startup: Startup,
        settings: Settings,
        requests: RequestAccounting,
        ready: Callable[[], bool],
        administration: Administration | None = None,
    ) -> None:
        """`ready` says whether requests are accepted now. Without `administration` nobody may load by this service."""
        self._startup = startup
        self._settings = settings
        self._requests = requests
        self._is_ready = ready
        self._administration = administration
        self._statistics = Statistics()
        self._open_streams = 0
        self._inference = InferHandler(startup, requests, self._statistics, settings.kserve_unavailable_when_full)
        # So many that one call can keep the workers busy, and so few that an idle server never refuses its own.
        # Workers that are still to be measured will not be more than the cores.
        workers = settings.workers or usable_cores()
        self._depth = min(2 * workers * settings.max_batch_size, settings.max_queue)

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._is_ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        if not self._is_ready():
            return pb.ModelReadyResponse(ready=False)
        try:
            target = find_target(await self._catalogue(), request.name, request.version)
        except NotFound:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=target.ready)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return describe.server_metadata(administered=self._administration is not None)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        return describe.model_metadata(find_target(await self._catalogue(), request.name, request.version))

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        target = find_target(await self._catalogue(), request.name, request.version)
        return pb.ModelConfigResponse(config=describe.model_config(target, self._settings))

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        catalogue = await self._catalogue()
        one = request.name
        chosen = [find_target(catalogue, one, request.version)] if one else all_targets(catalogue)
        return pb.ModelStatisticsResponse(model_stats=[self._statistics.of(target) for target in chosen])

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        _refuse_repository(request.repository_name)
        entries = [describe.index_entry(target) for target in all_targets(await self._catalogue())]
        return pb.RepositoryIndexResponse(
            models=[entry for entry in entries if entry.state == describe.READY or not request.ready]
        )

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        await self._permitted(request, PARAMETERS_OF_LOAD).load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        await self._permitted(request, PARAMETERS_OF_UNLOAD).unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    async def TraceSetting(self, request: pb.TraceSettingRequest, context: Context) -> pb.TraceSettingResponse:
        if request.model_name:
            find_target(await self._catalogue(), request.model_name)
        return server_settings.trace_settings(request, self._settings)

    async def LogSettings(self, request: pb.LogSettingsRequest, context: Context) -> pb.LogSettingsResponse:
        return server_settings.log_settings(request, self._settings)

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        return await self._inference.answer(request, context.time_remaining(), asyncio.Semaphore(self._depth))

    async def ModelStreamInfer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        permits = asyncio.Semaphore(self._depth)

        async def answer(request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
            try:
                with current.get().part("message", request.id, time.monotonic()):
                    response = await self._inference.answer(request, context.time_remaining(), permits)
            except Exception as error:
                return self._failed(request, to_known(error, f"request {request.id!r} of a stream"))
            return encode.to_stream_response(response)

        async with self._opened(), aclosing(in_order(requests, answer, self._depth)) as answers:
            async for response in answers:
                yield response

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        """Counts a stream as open. Raises TooManyStreams."""
        limit = self._settings.max_streams
        if self._open_streams >= limit:
            raise TooManyStreams(limit)
        self._open_streams += 1
        try:
            yield
        finally:
            self._open_streams -= 1

    def _failed(self, request: pb.ModelInferRequest, error: DamoserveError) -> pb.ModelStreamInferResponse:
        self._requests.count_reason(error)
        self._requests.count_unread(error)
        return encode.to_stream_failure(request, f"{error.reason}: {error}")

    async def _catalogue(self) -> Catalogue:
        return (await self._startup.detector()).catalogue

    def _permitted(
        self, request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest, accepted: Set[str]
    ) -> Administration:
        """Returns the administration if this change may be asked of it. Raises NotOffered."""
        if self._administration is None:
            raise NotOffered("models are not loaded or unloaded over this service")
        _refuse_repository(request.repository_name)
        if request.parameters.keys() - accepted:
            raise NotOffered("parameters are not offered: a model is loaded as its repository has it")
        return self._administration


def _refuse_repository(name: str) -> None:
    if name:
        raise NotOffered("there is only one repository: leave its name empty")
