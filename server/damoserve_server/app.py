"""One server: puts its parts together, starts them in order, and stops them in order.

What it computes with is built by `assembly`; here are its ports, its services, and the order of things. A start has
two steps. `listen` opens the ports and says NOT_SERVING, so that orchestrators see the server while it loads; calls
wait. `load` loads and warms up the models, lets the waiting calls go on, and says SERVING. A stop says NOT_SERVING,
goes on for the grace period, refuses what is new, and waits for what was accepted. Then it closes the port, the traces
and the workers.
"""

import asyncio
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from damoserve.v1 import admin_pb2, admin_pb2_grpc
from damoserve.v1 import detection_pb2 as pb
from damoserve.v1 import detection_pb2_grpc as pb_grpc
from damoserve_profiles.repository import Repository
from damoserve_server.assembly import Assembly, make_tracer
from damoserve_server.configuration.settings import Settings
from damoserve_server.detection.detector import Detector
from damoserve_server.detection.outcomes import RequestAccounting
from damoserve_server.detection.startup import Startup
from damoserve_server.engines.choice import load_engine
from damoserve_server.engines.engine import EngineLoader, close_engine
from damoserve_server.errors import ShuttingDown
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
from damoserve_server.models.loading import load_catalogue, require_models
from damoserve_server.rpc.health import Health
from damoserve_server.rpc.listeners import Listeners
from damoserve_server.scheduling.deadline import DeadlinePolicy
from damoserve_server.scheduling.policy import Policy
from damoserve_server.telemetry.records import Telemetry
from damoserve_server.telemetry.spans import Tracer
from damoserve_server.v1.admin import AdminService
from damoserve_server.v1.service import DetectionService, ProfileService
from damoserve_server.v1.stream import Streams

LAST_CALLS_SECONDS = 0.05
"""Time for calls that are on their way, before the port is closed."""
LAST_ANSWERS_SECONDS = 1.0
"""Time after the drain for answers that are on their way, and for streams that their clients leave open."""

SERVICES = [
    *pb.DESCRIPTOR.services_by_name.values(),
    *health_pb2.DESCRIPTOR.services_by_name.values(),
]
"""The services of the port that every server has; that of KServe can be switched off."""


class Application:
    """One server. It is made and used on a running event loop; `async with` starts and stops it."""

    def __init__(
        self,
        settings: Settings,
        load_engine: EngineLoader = load_engine,
        policy: Policy | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """`policy` takes the place of the server's own, to be compared with it; `tracer` that of the settings."""
        self._settings = settings
        self._registry = Registry()
        self._metrics = Metrics(self._registry, settings.tiers)
        self._requests = RequestAccounting(settings, self._metrics)
        self._shutdown = Shutdown(self._metrics.requests.tiers)
        self.health = Health()
        self._detector: asyncio.Future[Detector] = asyncio.get_running_loop().create_future()
        self._stopping = threading.Event()
        policy = policy or DeadlinePolicy(settings.max_batch_wait_ms / 1000)
        self._assembly = Assembly(settings, load_engine, policy, self._metrics, self._stopping)
        self._streams = Streams(settings.max_streams, settings.stream_window, settings.stream_idle_seconds)
        self._telemetry = Telemetry(tracer or make_tracer(settings.tracing), settings.access_log)
        self._listeners = Listeners(settings, self._metrics, self._requests, self._telemetry)
        self._lifecycle: Lifecycle | None = None
        self._has_workers = True
        self._health_updates: set[asyncio.Task[None]] = set()
        self._startup = Startup(self._detector, settings.default_deadline_seconds)
        self._server = self._build_server()
        self._endpoint: Endpoint | None = None
        self._management: ModelManagement | None = None
        self.port = 0
        self.metrics_port = 0
        self.admin_port = 0

    async def __aenter__(self) -> Self:
        """Starts the server; returns when all profiles are warm.

        Raises CatalogueError, ShuttingDown, or OSError if a port is taken.
        """
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
        """Opens the ports of gRPC and of the metrics, and says NOT_SERVING. Raises OSError if one is taken."""
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
        await asyncio.to_thread(require_models, repository)
        split = await asyncio.to_thread(self._assembly.choose_core_split, repository)
        loader = self._assembly.make_loader(split)
        # Before the files are read: what changes from now on is seen as a change.
        snapshots = await asyncio.to_thread(take_snapshots, repository)
        catalogue = await asyncio.to_thread(load_catalogue, repository, loader, settings.default_model)
        if self._stopping.is_set():
            raise ShuttingDown
        admin_server = self._bind_admin_server()  # before there are threads that would have to be ended
        detector = self._assembly.build_detector(catalogue, split, self._on_workers_changed)
        self._lifecycle = lifecycle = Lifecycle(repository, loader, detector, self._metrics, snapshots or {})
        if admin_server is not None:
            admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(lifecycle), admin_server)
        self._management = ModelManagement(lifecycle, admin_server, settings.watch_seconds)
        self._detector.set_result(detector)
        await self._management.start()
        await asyncio.to_thread(detector.fidelity.wait_until_ready)
        await self.health.serving()

    def log_stop(self, signal: str) -> None:
        """Logs which signal stops the server; once it has stopped, the log says what became of the requests."""
        self._shutdown.begin(signal)

    async def stop(self) -> None:
        """Accepts no more work, waits for what was accepted, closes everything."""
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
            await asyncio.sleep(0)  # so that the closing has begun before the calls in `closing` are let go
        await closing

    def describe(self) -> str:
        """Says in one line, for the operator, what is served where."""
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
        services = list(SERVICES)
        if self._settings.kserve:
            administration = LifecycleAdministration(lambda: self._lifecycle) if self._settings.kserve_admin else None
            inference = InferenceService(startup, self._settings, self._requests, self._is_ready, administration)
            kserve.add_to_server(inference, server)
            self._metrics.add_methods(KSERVE.full_name, kserve.NOT_OFFERED)
            services.append(KSERVE)
        self._listeners.publish(server, services)
        return server

    def _bind_admin_server(self) -> grpc.aio.Server | None:
        """Opens the admin port if it is set, without its service yet. Raises OSError if it is taken."""
        settings = self._settings
        if settings.admin_port is None:
            return None
        server = self._listeners.make_server()
        self._listeners.publish(server, list(admin_pb2.DESCRIPTOR.services_by_name.values()))
        self.admin_port = self._listeners.bind(server, settings.admin_host, settings.admin_port)
        return server

    def _on_workers_changed(self, alive: int) -> None:
        """Shows how many workers can compute. Without any the server is NOT_SERVING, as long as that lasts."""
        had_workers, self._has_workers = self._has_workers, alive > 0
        self._metrics.device.workers.set(alive)
        if had_workers == self._has_workers:
            return
        health = self.health
        change = health.recovered() if alive else health.degraded("no worker is left; they are being replaced")
        update = asyncio.get_running_loop().create_task(change)
        self._health_updates.add(update)  # the event loop itself keeps no task alive
        update.add_done_callback(self._health_updates.discard)

    def _is_ready(self) -> bool:
        return self._detector.done() and self._has_workers and not self._stopping.is_set()


async def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT, then drains. `announce` is called once, with a line, when the server is ready.

    Raises CatalogueError, or OSError if a port is taken.
    """
    application = Application(settings)
    serving = asyncio.ensure_future(_run(application, announce))

    def on_signal(received: signal.Signals) -> None:
        if not serving.cancelling():  # another signal must not cut the drain short
            application.log_stop(received.name)
            serving.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    with suppress(asyncio.CancelledError):
        await serving


async def _run(application: Application, announce: Callable[[str], None]) -> None:
    async with application:
        announce(application.describe())
        await asyncio.Event().wait()
