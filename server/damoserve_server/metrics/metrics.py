"""All metrics of a server, by their subjects.

Label values come from closed sets only, never from callers. What is counted exists from the start, at zero.
"""

from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from damoserve_profiles.manifest import Manifest
from damoserve_server.configuration.settings import Tiers
from damoserve_server.fidelity.metrics import FidelityMetrics
from damoserve_server.metrics.buckets import CALL_SECONDS, SECONDS, SHORT_SECONDS, with_objectives
from damoserve_server.metrics.calls import CallMetrics, Calls
from damoserve_server.metrics.device import DeviceMetrics
from damoserve_server.metrics.exposition import Endpoint, Registry
from damoserve_server.metrics.models import ModelMetrics
from damoserve_server.metrics.requests import NO_TIER, STAGES, Outcome, RequestMetrics
from damoserve_server.scheduling.selection import Tier

__all__ = ["NO_TIER", "STAGES", "Calls", "Endpoint", "Metrics", "Outcome", "Registry", "RequestMetrics"]

# A second series for each, only to say when the server started: `process_start_time_seconds` does.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of one server: those of calls, requests, the device, models and fidelity."""

    def __init__(self, registry: CollectorRegistry, tiers: Tiers) -> None:
        objectives = [tiers[tier].objective_ms / 1000 for tier in Tier]
        edges, stage_edges = with_objectives(SECONDS, objectives), with_objectives(SHORT_SECONDS, objectives)
        self.calls = CallMetrics(registry, with_objectives(CALL_SECONDS, objectives))
        self.requests = RequestMetrics(registry, edges, stage_edges)
        self.device = DeviceMetrics(registry)
        self.models = ModelMetrics(registry, tiers)
        self.fidelity = FidelityMetrics(registry)
        ProcessCollector(registry=registry)
        PlatformCollector(registry)
        GCCollector(registry)

    def add_methods(self, service: str, methods: Iterable[str], kind: str = "unary") -> None:
        """Creates the series of those methods of a gRPC service that are of this type."""
        self.calls.add(service, methods, kind)

    def add_profile(self, manifest: Manifest) -> None:
        """Creates the series of a profile that serves, but for those of the fidelity monitor, which may be off."""
        key = manifest.model, manifest.profile
        self.requests.add_profile(key)
        self.device.add_profile(key)
        self.models.add_profile(manifest)
