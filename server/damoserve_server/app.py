"""Puts the server together, starts it and stops it."""

import asyncio
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Self

import cv2
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from damoserve.v1 import admin_pb2, admin_pb2_grpc
from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_profiles.repository import Repository
from damoserve_server.admin import AdminService
from damoserve_server.catalogue import Catalogue
from damoserve_server.detector import Detector
from damoserve_server.engines import EngineLoader, EngineOptions
from damoserve_server.engines.choice import load_engine
from damoserve_server.errors import ShuttingDown
from damoserve_server.health import Health
from damoserve_server.images import ImageLimits, ImageReader
from damoserve_server.interceptors import CallInterceptor
from damoserve_server.lifecycle import Lifecycle
from damoserve_server.loading import Loading, load_catalogue
from damoserve_server.management import Management
from damoserve_server.metrics import Endpoint, Metrics
from damoserve_server.scheduler import Policy
from damoserve_server.service import DetectionService, ProfileService, Startup
from damoserve_server.settings import Settings, usable_cores
from damoserve_server.watch import look
from damoserve_server.workers import Workers

LAST_ANSWERS_SECONDS = 1.0
"""After the drain: time for answers on their way, and for streams that their clients leave open."""

SERVICES = [
    *pb.DESCRIPTOR.services_by_name.values(),
    *health_pb2.DESCRIPTOR.services_by_name.values(),
]


class Application:
    """One server. Made and used on a running event loop; `async with` starts and stops it."""

    def __init__(self, settings: Settings, load_engine: EngineLoader = load_engine) -> None:
        self._settings = settings
        self._load_engine = load_engine
        self._registry = CollectorRegistry()
        self._metrics = Metrics(self._registry)
        self.health = Health()
        self._detector: asyncio.Future[Detector] = asyncio.get_running_loop().create_future()
        self._stopping = threading.Event()
        self._server = self._build_server()
        self._endpoint: Endpoint | None = None
        self._management: Management | None = None
        self.port = 0
        self.metrics_port = 0
        self.admin_port = 0

    async def __aenter__(self) -> Self:
        """Returns when all profiles are warm. Raises CatalogueError, ShuttingDown, or OSError if a port is taken."""
        try:
            await self.listen()
            await self.load()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def listen(self) -> None:
        """Opens both ports; the health service says NOT_SERVING. Raises OSError."""
        settings = self._settings
        await self.health.starting()
        self._endpoint = Endpoint(self._registry, settings.metrics_host, settings.metrics_port)
        self.metrics_port = self._endpoint.port
        self.port = _bind(self._server, settings.host, settings.port)
        await self._server.start()

    async def load(self) -> None:
        """Loads and warms up all profiles, then says SERVING.

        Raises CatalogueError, OSError if the admin port is taken, or ShuttingDown after `stop`.
        """
        settings = self._settings
        options = EngineOptions(
            settings.max_batch_size, settings.threads_per_worker, settings.providers, settings.engine
        )
        loading = Loading(self._load_engine, options, settings.workers, stop=self._stopping)
        repository = Repository(settings.repository)
        # Before the files are read: what changes from now on is seen as a change.
        sights = await asyncio.to_thread(look, repository)
        catalogue = await asyncio.to_thread(load_catalogue, repository, loading, settings.default_model)
        if self._stopping.is_set():
            raise ShuttingDown
        detector = self._build_detector(catalogue)
        lifecycle = Lifecycle(repository, loading, detector, self._metrics, sights or {})
        self._management = Management(lifecycle, self._build_admin_server(lifecycle), settings.watch_seconds)
        self._detector.set_result(detector)
        await self._management.start()
        await self.health.serving()

    async def stop(self) -> None:
        """Takes no more work, waits for what was accepted, closes everything."""
        self._stopping.set()
        await self.health.stopping()
        if not self._detector.done():
            self._detector.set_exception(ShuttingDown())  # for the calls that wait for the models
        loaded = None if self._detector.exception() else self._detector.result()
        if loaded is not None and self._management is not None:
            await asyncio.sleep(self._settings.grace_seconds)
            # Beside the drain: a profile that is being loaded may take as long.
            await asyncio.gather(self._management.stop(), loaded.drain(self._settings.drain_seconds))
        await self._server.stop(LAST_ANSWERS_SECONDS)
        if loaded is not None:
            await loaded.close()
        if self._endpoint is not None:
            await self._endpoint.close()

    def describe(self) -> str:
        """One line for the operator: what is served where."""
        models = self._detector.result().catalogue.models.values()
        served = ", ".join(f"{model.name} ({', '.join(profile.name for profile in model.active)})" for model in models)
        host, metrics_host = self._settings.host, self._settings.metrics_host
        return f"serving {served} on {host}:{self.port}, metrics on http://{metrics_host}:{self.metrics_port}/metrics"

    def _build_server(self) -> grpc.aio.Server:
        options = [
            ("grpc.max_receive_message_length", self._settings.max_message_bytes),
            ("grpc.so_reuseport", 0),  # a second server on the same port is to fail, not to share its calls
        ]
        server = grpc.aio.server(
            interceptors=[CallInterceptor(self._metrics)],
            options=options,
            maximum_concurrent_rpcs=self._settings.max_concurrent_calls,
        )
        startup = Startup(self._detector, self._settings.default_deadline_seconds)
        pb_grpc.add_DetectionServiceServicer_to_server(DetectionService(startup), server)
        pb_grpc.add_ProfileServiceServicer_to_server(ProfileService(startup), server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, server)
        if self._settings.reflection:
            names = [service.full_name for service in SERVICES]
            reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
        for service in SERVICES:
            unary = [method.name for method in service.methods if not method.server_streaming]
            self._metrics.add_methods(service.full_name, unary)
        return server

    def _build_admin_server(self, lifecycle: Lifecycle) -> grpc.aio.Server | None:
        """Raises OSError if its port is taken."""
        settings = self._settings
        if settings.admin_port is None:
            return None
        server = grpc.aio.server(interceptors=[CallInterceptor(self._metrics)], options=[("grpc.so_reuseport", 0)])
        admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(lifecycle), server)
        [service] = admin_pb2.DESCRIPTOR.services_by_name.values()
        if settings.reflection:
            reflection.enable_server_reflection([service.full_name, reflection.SERVICE_NAME], server)
        self._metrics.add_methods(service.full_name, [method.name for method in service.methods])
        self.admin_port = _bind(server, settings.admin_host, settings.admin_port)
        return server

    def _build_detector(self, catalogue: Catalogue) -> Detector:
        settings = self._settings
        # Each image is decoded and resized by one thread; a second layer of threads would only compete with them.
        cv2.setNumThreads(1)
        decoders = ThreadPoolExecutor(usable_cores(), "decode")
        images = ImageReader(ImageLimits(settings.max_image_bytes, settings.max_pixels), decoders)
        policy = Policy(
            settings.workers, settings.max_batch_size, settings.max_batch_wait_ms / 1000, settings.max_queue
        )
        workers = Workers(catalogue.active(), policy, self._metrics)
        detector = Detector(settings, catalogue, images, workers, self._metrics)
        self._metrics.watch_pools(detector.free_slots, detector.leased_slots)
        return detector


def _bind(server: grpc.aio.Server, host: str, port: int) -> int:
    """Raises OSError."""
    try:
        return server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {host}:{port}") from error


async def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT, then drains. `announce` is told once, when the server is ready.

    Raises CatalogueError, or OSError if a port is taken.
    """
    serving = asyncio.ensure_future(_serve(settings, announce))

    def stop() -> None:
        if not serving.cancelling():  # another signal must not cut the drain short
            serving.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    with suppress(asyncio.CancelledError):
        await serving


async def _serve(settings: Settings, announce: Callable[[str], None]) -> None:
    async with Application(settings) as application:
        announce(application.describe())
        await asyncio.Event().wait()
