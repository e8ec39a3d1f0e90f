"""Lets in the calls whose token may make them. The `CallInterceptor` is around it, and counts refused calls too."""

from __future__ import annotations  # gRPC's classes are generic for type checkers only

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from damoserve_server.access.limits import Allowance, Bucket
from damoserve_server.access.tokens import Holder, Right, Tokens
from damoserve_server.errors import DamoserveError, PermissionDenied, TokenInvalid, TokenMissing
from damoserve_server.rpc.handlers import HANDLER_MAKERS

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
"""The method that may be open to everybody. Not `Watch`: calls held open without a token could keep others out."""
DATA_SERVICES = {
    "damoserve.v1.DetectionService",
    "damoserve.v1.ProfileService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
    "inference.GRPCInferenceService",
}
"""Services for tokens with the right `detect`. All others want the right `admin`."""
CHANGING_METHODS = {
    "/inference.GRPCInferenceService/RepositoryModelLoad",
    "/inference.GRPCInferenceService/RepositoryModelUnload",
}
"""Methods of these services that want the right `admin` all the same, as they change what is served."""

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]


def right_for(method: str) -> Right:
    """Returns the right that a token needs for a method, `/package.Service/Method`."""
    service = method.split("/")[1]
    return Right.DETECT if service in DATA_SERVICES and method not in CHANGING_METHODS else Right.ADMIN


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Guards every method. What a call may not do is raised in the place of its handler.

    Raises Unauthenticated, PermissionDenied, RateLimited and ConcurrencyLimited.
    """

    def __init__(self, tokens: Tokens, open_health: bool) -> None:
        self._tokens = tokens
        self._open = {HEALTH_CHECK} if open_health else set()
        self._log_limit = Bucket(
            rate=10, burst=100
        )  # a flood of refused calls is not to fill the disk; all are counted

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        return handler if handler is None or method in self._open else self._guarded(handler, method)

    def _guarded(self, handler: Handler, method: str) -> Handler:
        attribute, make = HANDLER_MAKERS[handler.request_streaming, handler.response_streaming]
        behaviour: Callable[..., Any] = getattr(handler, attribute)

        async def answer(request: Any, context: Context) -> Any:
            with self._admitted(method, context) as allowance:
                return await behaviour(allowance.paced(request) if handler.request_streaming else request, context)

        async def answers(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._admitted(method, context) as allowance:
                received = allowance.paced(request) if handler.request_streaming else request
                async with aclosing(behaviour(received, context)) as replies:
                    async for reply in replies:
                        yield reply

        guarded: Handler = make(
            answers if inspect.isasyncgenfunction(behaviour) else answer,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return guarded

    @contextmanager
    def _admitted(self, method: str, context: Context) -> Iterator[Allowance]:
        try:
            allowance = self._holder(right_for(method), context).allowance
            allowance.enter()
        except DamoserveError as error:
            if not self._log_limit.take():
                log.warning("refused %s from %s with %s: %s", method, context.peer(), error.reason, error)
            raise
        try:
            yield allowance
        finally:
            allowance.leave()

    def _holder(self, right: Right, context: Context) -> Holder:
        scheme, _, token = str(dict(context.invocation_metadata() or ()).get("authorization", "")).partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise TokenMissing
        holder = self._tokens.find(token)
        if holder is None:
            raise TokenInvalid
        if right not in holder.rights:
            raise PermissionDenied(holder.name, right)
        return holder
