"""Puts the server together, starts it and stops it."""

import asyncio
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

import cv2
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from damoserve.v1 import admin_pb2, admin_pb2_grpc
from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_profiles.repository import Repository
from damoserve_server.configuration.settings import Settings, usable_cores
from damoserve_server.detection.detector import Detector
from damoserve_server.detection.outcomes import RequestAccounting
from damoserve_server.detection.startup import Startup
from damoserve_server.detection.worker_pool import WorkerLimits, WorkerPool
from damoserve_server.engines.choice import load_engine
from damoserve_server.engines.engine import EngineLoader, EngineOptions, GpuOptions, close_engine
from damoserve_server.errors import ShuttingDown
from damoserve_server.inputs.images import ImageLimits, ImageReader
from damoserve_server.kserve import methods as kserve
from damoserve_server.kserve.administration import LifecycleAdministration
from damoserve_server.kserve.descriptor import SERVICE as KSERVE
from damoserve_server.kserve.service import InferenceService
from damoserve_server.lifecycle.lifecycle import Lifecycle
from damoserve_server.lifecycle.management import ModelManagement
from damoserve_server.lifecycle.shutdown import Shutdown
from damoserve_server.lifecycle.watch import take_snapshots
from damoserve_server.metrics.exposition import Endpoint, Registry
from damoserve_server.metrics.metrics import Metrics
from damoserve_server.models.catalogue import Catalogue
from damoserve_server.models.core_split import CoreSplit, SplitTrial, possible_splits
from damoserve_server.models.loading import ProfileLoader, load_catalogue, require_models
from damoserve_server.rpc.health import Health
from damoserve_server.rpc.listeners import Listeners
from damoserve_server.scheduling.deadline import DeadlinePolicy
from damoserve_server.scheduling.policy import Policy
from damoserve_server.telemetry.records import Telemetry
from damoserve_server.telemetry.settings import TracingSettings
from damoserve_server.telemetry.spans import Tracer
from damoserve_server.v1.admin import AdminService
from damoserve_server.v1.service import DetectionService, ProfileService
from damoserve_server.v1.stream import Streams

LAST_CALLS_SECONDS = 0.05
"""Before the port is closed: time for calls that are on their way."""
LAST_ANSWERS_SECONDS = 1.0
"""After the drain: time for answers on their way, and for streams that their clients leave open."""

SERVICES = [
    *pb.DESCRIPTOR.services_by_name.values(),
    *health_pb2.DESCRIPTOR.services_by_name.values(),
]


class Application:
    """One server. Made and used on a running event loop; `async with` starts and stops it."""

    def __init__(
        self,
        settings: Settings,
        load_engine: EngineLoader = load_engine,
        policy: Policy | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """`policy` is what the server's own is to be compared with; `tracer` goes before what the settings say."""
        self._settings = settings
        self._policy = policy or DeadlinePolicy(settings.max_batch_wait_ms / 1000)
        self._load_engine = load_engine
        self._registry = Registry()
        self._metrics = Metrics(self._registry, settings.tiers)
        self._requests = RequestAccounting(settings, self._metrics)
        self._shutdown = Shutdown(self._metrics.requests.tiers)
        self.health = Health()
        self._detector: asyncio.Future[Detector] = asyncio.get_running_loop().create_future()
        self._stopping = threading.Event()
        self._streams = Streams(settings.max_streams, settings.stream_window, settings.stream_idle_seconds)
        self._telemetry = Telemetry(tracer or _tracer(settings.tracing), settings.access_log)
        self._listeners = Listeners(settings, self._metrics, self._requests, self._telemetry)
        self._lifecycle: Lifecycle | None = None
        self._has_workers = True
        self._telling: set[asyncio.Task[None]] = set()
        self._startup = Startup(self._detector, settings.default_deadline_seconds)
        self._server = self._build_server()
        self._endpoint: Endpoint | None = None
        self._management: ModelManagement | None = None
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
        self.port = self._listeners.bind(self._server, settings.host, settings.port)
        await self._server.start()

    async def load(self) -> None:
        """Loads and warms up all profiles, then says SERVING.

        Raises CatalogueError, OSError if the admin port is taken, or ShuttingDown after `stop`.
        """
        settings = self._settings
        repository = Repository(settings.repository)
        gpu = GpuOptions(settings.gpu_device, settings.engine_cache, settings.gpu_memory_bytes)
        options = EngineOptions(settings.max_batch_size, 1, settings.providers, settings.engine, gpu)
        await asyncio.to_thread(require_models, repository)
        split = await asyncio.to_thread(self._split, options, repository)
        loader = ProfileLoader(
            self._load_engine, replace(options, threads=split.threads), split.workers, stop=self._stopping
        )
        # Before the files are read: what changes from now on is seen as a change.
        snapshots = await asyncio.to_thread(take_snapshots, repository)
        catalogue = await asyncio.to_thread(load_catalogue, repository, loader, settings.default_model)
        if self._stopping.is_set():
            raise ShuttingDown
        admin_server = self._bind_admin_server()  # before there are threads that would have to be ended
        detector = self._build_detector(catalogue, split)
        self._lifecycle = lifecycle = Lifecycle(repository, loader, detector, self._metrics, snapshots or {})
        if admin_server is not None:
            admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(lifecycle), admin_server)
        self._management = ModelManagement(lifecycle, admin_server, settings.watch_seconds)
        self._detector.set_result(detector)
        await self._management.start()
        await asyncio.to_thread(detector.fidelity.wait_until_ready)
        await self.health.serving()

    def tell_stop(self, signal: str) -> None:
        """Logs that a signal stops the server, and which; once it has stopped, the log says how that went."""
        self._shutdown.begin(signal)

    async def stop(self) -> None:
        """Takes no more work, waits for what was accepted, closes everything."""
        self._stopping.set()
        await self.health.stopping()
        if not self._detector.done():
            self._detector.set_exception(ShuttingDown())  # for the calls that wait for the models
        loaded = None if self._detector.exception() else self._detector.result()
        if loaded is not None and self._management is not None:
            await asyncio.sleep(self._settings.grace_seconds)
            self._streams.close()
            # Beside the drain: a profile that is being loaded may take as long.
            await asyncio.gather(self._management.stop(), loaded.drain(self._settings.drain_seconds))
        await self._close_port()
        await asyncio.to_thread(self._telemetry.close)
        if loaded is not None and await loaded.close():
            for engine in (engine for profile in loaded.catalogue.active() for engine in profile.engines):
                close_engine(engine)
        if self._endpoint is not None:
            await self._endpoint.close()
        self._shutdown.end()

    async def _close_port(self) -> None:
        with self._startup.closing():
            await asyncio.sleep(LAST_CALLS_SECONDS)
            closing = asyncio.create_task(self._server.stop(LAST_ANSWERS_SECONDS))
            await asyncio.sleep(0)  # it has begun then
        await closing

    def describe(self) -> str:
        """One line for the operator: what is served where."""
        models = self._detector.result().catalogue.models.values()
        served = ", ".join(f"{model.name} ({', '.join(profile.name for profile in model.active)})" for model in models)
        host, metrics_host = self._settings.host, self._settings.metrics_host
        return f"serving {served} on {host}:{self.port}, metrics on http://{metrics_host}:{self.metrics_port}/metrics"

    def _build_server(self) -> grpc.aio.Server:
        server = self._listeners.make_server()
        startup = self._startup
        pb_grpc.add_DetectionServiceServicer_to_server(DetectionService(startup, self._streams, self._requests), server)
        pb_grpc.add_ProfileServiceServicer_to_server(ProfileService(startup), server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, server)
        described = list(SERVICES)
        if self._settings.kserve:
            administration = LifecycleAdministration(lambda: self._lifecycle) if self._settings.kserve_admin else None
            inference = InferenceService(startup, self._settings, self._requests, self._is_ready, administration)
            kserve.add_to_server(inference, server)
            self._metrics.add_methods(KSERVE.full_name, kserve.NOT_OFFERED)
            described.append(KSERVE)
        self._listeners.publish(server, described)
        return server

    def _bind_admin_server(self) -> grpc.aio.Server | None:
        """Still without its service. Raises OSError if its port is taken."""
        settings = self._settings
        if settings.admin_port is None:
            return None
        server = self._listeners.make_server()
        self._listeners.publish(server, list(admin_pb2.DESCRIPTOR.services_by_name.values()))
        self.admin_port = self._listeners.bind(server, settings.admin_host, settings.admin_port)
        return server

    def _count_workers(self, alive: int) -> None:
        before, self._has_workers = self._has_workers, alive > 0
        self._metrics.device.workers.set(alive)
        if before == self._has_workers:
            return
        told = self.health.recovered() if alive else self.health.degraded("no worker is left; they are being replaced")
        telling = asyncio.get_running_loop().create_task(told)
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    def _is_ready(self) -> bool:
        return self._detector.done() and self._has_workers and not self._stopping.is_set()

    def _split(self, options: EngineOptions, repository: Repository) -> CoreSplit:
        settings = self._settings
        # One worker keeps a GPU busy; to build engines for it only to measure could take minutes.
        cores = 1 if options.on_gpu else usable_cores()
        trial = SplitTrial(self._load_engine, options, settings.split_seconds, stop=self._stopping)
        splits = possible_splits(cores, settings.workers, settings.threads_per_worker)
        return trial.best(splits, repository, settings.default_model)

    def _build_detector(self, catalogue: Catalogue, split: CoreSplit) -> Detector:
        settings = self._settings
        # Each image is decoded and resized by one thread; a second layer of threads would only compete with them.
        cv2.setNumThreads(1)
        decoders = ThreadPoolExecutor(usable_cores(), "decode")
        images = ImageReader(ImageLimits(settings.max_image_bytes, settings.max_pixels), decoders)
        self._metrics.device.worker_threads.set(split.threads)
        limits = WorkerLimits(
            split.workers, settings.max_batch_size, settings.max_queue, settings.worker_timeout_seconds
        )
        workers = WorkerPool(self._policy, limits, self._metrics, self._count_workers)
        detector = Detector(settings, catalogue, images, workers, self._metrics)
        device = self._metrics.device
        device.watch_pools({"free": detector.free_slots, "leased": detector.leased_slots}, detector.most_leased_slots)
        device.watch_queue(partial(workers.queued, ready=False), partial(workers.queued, ready=True))
        device.workers_busy.set_function(lambda: workers.busy)
        return detector


def _tracer(settings: TracingSettings) -> Tracer:
    if settings.endpoint is None:
        return Tracer()
    from damoserve_server.telemetry.opentelemetry import open_tracer

    return open_tracer(settings)


async def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT, then drains. `announce` is told once, when the server is ready.

    Raises CatalogueError, or OSError if a port is taken.
    """
    application = Application(settings)
    serving = asyncio.ensure_future(_serve(application, announce))

    def stop(by: signal.Signals) -> None:
        if not serving.cancelling():  # another signal must not cut the drain short
            application.tell_stop(by.name)
            serving.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    with suppress(asyncio.CancelledError):
        await serving


async def _serve(application: Application, announce: Callable[[str], None]) -> None:
    async with application:
        announce(application.describe())
        await asyncio.Event().wait()
