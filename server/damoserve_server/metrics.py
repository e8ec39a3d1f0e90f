"""What Prometheus sees. Label values come from closed sets only, and every series exists from the start, at zero."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from damoserve_profiles.manifest import Manifest
from damoserve_server import errors
from damoserve_server.catalogue import State
from damoserve_server.fidelity.metrics import FidelityMetrics
from damoserve_server.router import Reason, Tier

# fmt: off
SECONDS = (
    0.001, 0.0015, 0.0025, 0.004, 0.006, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075,
    0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10,
)
# fmt: on
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
RELOADED_FILES = ("certificate", "tokens")
RELOAD_RESULTS = {True: "taken", False: "refused"}
STAGES = ("decode", "queue", "inference", "postprocess")
FRAME_OUTCOMES = ("answered", "refused", "dropped_server_behind", "dropped_client_behind")
RELOADS = ("switched", "refused", "abandoned", "removed")
"""How an attempt to change the version of a model ended."""
NO_TIER = "none"
"""The tier label of a request that names its profile."""


@dataclass(frozen=True)
class Answered:
    """The series of answers of one kind; to look each up by its labels takes as long as to count."""

    routed: Counter
    request: Histogram
    stages: Mapping[str, Histogram]


@dataclass(frozen=True)
class Calls:
    """The series of one method."""

    started: Counter
    handling: Histogram
    received: Counter
    sent: Counter
    handled: Mapping[grpc.StatusCode, Counter]


class Metrics:
    """The metrics of one server. The `grpc_server_` ones have the names and labels of go-grpc-middleware."""

    def __init__(self, registry: CollectorRegistry) -> None:
        rpc = ["grpc_type", "grpc_service", "grpc_method"]
        profile = ["model", "profile"]
        self.started = Counter("grpc_server_started", "Calls started.", rpc, registry=registry)
        self.handled = Counter("grpc_server_handled", "Calls completed.", [*rpc, "grpc_code"], registry=registry)
        self.handling = Histogram(
            "grpc_server_handling_seconds", "Time from start to end of a call.", rpc, registry=registry, buckets=SECONDS
        )
        self.received = Counter("grpc_server_msg_received", "Messages from callers.", rpc, registry=registry)
        self.sent = Counter("grpc_server_msg_sent", "Messages to callers.", rpc, registry=registry)
        self.refused = Counter(
            "damoserve_refused", "Calls and frames that failed, by reason.", ["reason"], registry=registry
        )
        self.routed = Counter(
            "damoserve_routed", "Choices of a profile.", [*profile, "tier", "reason"], registry=registry
        )
        self.request_seconds = Histogram(
            "damoserve_request_seconds",
            "Time from the arrival of an answered request to its answer.",
            [*profile, "tier"],
            registry=registry,
            buckets=SECONDS,
        )
        self.stage_seconds = Histogram(
            "damoserve_stage_seconds",
            "Time of an answered request in each stage.",
            [*profile, "stage"],
            registry=registry,
            buckets=SECONDS,
        )
        self.batch_size = Histogram(
            "damoserve_batch_size",
            "Requests computed together.",
            profile,
            registry=registry,
            buckets=BATCH_SIZES,
        )
        self.queued = Gauge(
            "damoserve_queued_requests", "Accepted requests that no worker has begun.", ["state"], registry=registry
        )
        self.worker_restarts = Counter(
            "damoserve_worker_restarts", "Workers that hung or died and were replaced.", registry=registry
        )
        self.workers = Gauge("damoserve_workers", "Workers that can compute.", registry=registry)
        self.worker_threads = Gauge(
            "damoserve_worker_threads", "Threads that each worker computes with.", registry=registry
        )
        self.profile_state = Gauge(
            "damoserve_profile_state", "1 for the state that the profile is in.", [*profile, "state"], registry=registry
        )
        self.profile_info = Gauge(
            "damoserve_profile_info", "1; what the profile is.", [*profile, "version", "variant"], registry=registry
        )
        self.pool_slots = Gauge("damoserve_pool_slots", "Buffers for network inputs.", ["state"], registry=registry)
        self.credential_reloads = Counter(
            "damoserve_credential_reloads", "Changed files that were read again.", ["file", "result"], registry=registry
        )
        self.frames = Counter("damoserve_stream_frames", "Frames of streams, by end.", ["outcome"], registry=registry)
        self.reloads = Counter(
            "damoserve_reloads", "Attempts to change the version of a model.", ["model", "result"], registry=registry
        )
        self.fidelity = FidelityMetrics(registry)
        self._shown: dict[str, dict[str, State]] = {}
        self._answered: dict[tuple[tuple[str, str], str, Reason], Answered] = {}
        self._calls: dict[tuple[str, str, str], Calls] = {}
        for reason in errors.reasons():
            self.refused.labels(reason)
        for file, result in product(RELOADED_FILES, RELOAD_RESULTS.values()):
            self.credential_reloads.labels(file, result)
        for outcome in FRAME_OUTCOMES:
            self.frames.labels(outcome)

    def answered(self, profile: tuple[str, str], tier: str, reason: Reason) -> Answered:
        kind = profile, tier, reason
        if kind not in self._answered:
            self._answered[kind] = Answered(
                self.routed.labels(*profile, tier, reason),
                self.request_seconds.labels(*profile, tier),
                {stage: self.stage_seconds.labels(*profile, stage) for stage in STAGES},
            )
        return self._answered[kind]

    def calls(self, labels: tuple[str, str, str]) -> Calls:
        """`labels` are the type, the service and the method."""
        if labels not in self._calls:
            self._calls[labels] = Calls(
                started=self.started.labels(*labels),
                handling=self.handling.labels(*labels),
                received=self.received.labels(*labels),
                sent=self.sent.labels(*labels),
                handled={code: self.handled.labels(*labels, code.name) for code in grpc.StatusCode},
            )
        return self._calls[labels]

    def add_methods(self, service: str, methods: Iterable[str], kind: str = "unary") -> None:
        """Creates the series of those methods of a gRPC service that are of this type."""
        for method in methods:
            self.calls((kind, service, method))

    def add_profile(self, manifest: Manifest) -> None:
        """Creates the series of a profile that serves."""
        model, profile = manifest.model, manifest.profile
        for tier, reason in product(Tier, (Reason.MOST_ACCURATE_IN_TIME, Reason.QUICKEST)):
            self.answered((model, profile), tier, reason)
        self.answered((model, profile), NO_TIER, Reason.REQUESTED)
        self.batch_size.labels(model, profile)
        self.fidelity.add_profile(manifest)
        self.profile_info.labels(model, profile, manifest.version, manifest.variant).set(1)

    def drop_profile(self, manifest: Manifest, successor: Manifest | None) -> None:
        """Removes what says that a profile is there, unless its successor says the same. What it did stays counted."""
        model, profile = manifest.model, manifest.profile
        if successor is None or (successor.version, successor.variant) != (manifest.version, manifest.variant):
            self.profile_info.remove(model, profile, manifest.version, manifest.variant)

    def show_states(self, model: str, states: Mapping[str, State]) -> None:
        """The states of a model's profiles; those it no longer has are removed."""
        for name in self._shown.get(model, {}).keys() - states.keys():
            self.profile_state.remove_by_labels({"model": model, "profile": name})
        for name, state in states.items():
            for possible in State:
                self.profile_state.labels(model, name, possible).set(state == possible)
        self._shown[model] = dict(states)
        for result in RELOADS:
            self.reloads.labels(model, result)

    def watch_queue(self, decoding: Callable[[], int], ready: Callable[[], int]) -> None:
        self.queued.labels("decoding").set_function(decoding)
        self.queued.labels("ready").set_function(ready)

    def count_credential_reload(self, file: str, taken: bool) -> None:
        self.credential_reloads.labels(file, RELOAD_RESULTS[taken]).inc()

    def watch_pools(self, free: Callable[[], int], leased: Callable[[], int]) -> None:
        self.pool_slots.labels("free").set_function(free)
        self.pool_slots.labels("leased").set_function(leased)


class Endpoint:
    """Serves a registry over HTTP from a thread of its own."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        """Raises OSError if the port is taken."""
        self._server, self._thread = start_http_server(port, host, registry)
        self.port = self._server.server_port

    async def close(self) -> None:
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        self._thread.join()
