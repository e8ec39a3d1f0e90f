"""The admin service: loads, unloads and replaces what is served, by messages of `damoserve.v1`."""

from __future__ import annotations  # gRPC's context is generic for type checkers only

import asyncio
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from damoserve.v1 import admin_pb2 as pb
from damoserve.v1 import admin_pb2_grpc as pb_grpc
from damoserve.v1 import detection_pb2
from damoserve_profiles.repository import AliasesInvalid, Repository
from damoserve_server.errors import ArgumentOutOfRange
from damoserve_server.lifecycle.lifecycle import Lifecycle
from damoserve_server.v1 import convert

if TYPE_CHECKING:
    import grpc

    from damoserve_server.models.catalogue import Model

    Context = grpc.aio.ServicerContext[Any, Any]

ALIAS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


class AdminService(pb_grpc.AdminServiceServicer):
    """Changes what is served. gRPC ends a call at its deadline, and with it the change that it has begun."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        stored = await asyncio.to_thread(self._lifecycle.repository.models)
        names = sorted({*stored, *self._lifecycle.catalogue.models})
        return pb.ListModelsResponse(models=[await self._status(name) for name in names])

    async def LoadProfile(self, request: pb.LoadProfileRequest, context: Context) -> detection_pb2.Profile:
        return _profile_message(await self._lifecycle.load_profile(request.model, request.profile), request.profile)

    async def UnloadProfile(self, request: pb.UnloadProfileRequest, context: Context) -> detection_pb2.Profile:
        return _profile_message(await self._lifecycle.unload_profile(request.model, request.profile), request.profile)

    async def ReloadModel(self, request: pb.ReloadModelRequest, context: Context) -> pb.ModelStatus:
        target = request.WhichOneof("target")
        await self._lifecycle.reload(request.model, None if target is None else getattr(request, target))
        return await self._status(request.model)

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.ModelStatus:
        if ALIAS.fullmatch(request.alias) is None:
            raise ArgumentOutOfRange("alias", "alias must be up to 100 letters, digits, '.', '_' and '-'")
        await self._lifecycle.set_alias(request.model, request.alias, request.version or None)
        return await self._status(request.model)

    async def _status(self, name: str) -> pb.ModelStatus:
        status = await asyncio.to_thread(_stored_status, self._lifecycle.repository, name)
        model = self._lifecycle.catalogue.models.get(name)
        if model is not None:
            status.serving_version = model.version
            status.profiles.extend(convert.to_profiles(model))
        return status


def _stored_status(repository: Repository, name: str) -> pb.ModelStatus:
    status = pb.ModelStatus(model=name, versions=repository.versions(name))
    with suppress(AliasesInvalid):  # who loads the model gets the error
        status.aliases.update(repository.aliases(name))
    return status


def _profile_message(model: Model, profile: str) -> detection_pb2.Profile:
    return convert.to_profile(model.name, model.version, model.find(profile))
