"""Metrics of what computes: queue, batches, workers and buffers."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from damoserve_server.metrics.buckets import BATCH_SIZES
from damoserve_server.scheduling.scheduler import Closing


class DeviceMetrics:
    """The metrics of one device."""

    def __init__(self, registry: CollectorRegistry) -> None:
        profile = ["model", "profile"]
        self.queued = Gauge(
            "damoserve_queued_requests",
            "Accepted requests that no worker has begun: `decoding` or `ready`. No profile is chosen for them yet.",
            ["state"],
            registry=registry,
        )
        self.batch_size = Histogram(
            "damoserve_batch_size", "Requests computed together.", profile, registry=registry, buckets=BATCH_SIZES
        )
        self.batches = Counter(
            "damoserve_batches",
            "Batches by why they were closed. `full`: no larger batch is worthwhile; `all_ready`: nobody else was "
            "ready, and to wait was not worthwhile; `waited`: likewise, after a wait for company; `smaller`: more were "
            "ready, but left to other workers, or so that fewer are late.",
            [*profile, "reason"],
            registry=registry,
        )
        self.workers = Gauge("damoserve_workers", "Workers that can compute.", registry=registry)
        self.workers_busy = Gauge("damoserve_workers_busy", "Workers that compute now.", registry=registry)
        self.worker_busy_seconds = Counter(
            "damoserve_worker_busy_seconds", "Time of all workers in batches that have ended.", registry=registry
        )
        self.worker_threads = Gauge(
            "damoserve_worker_threads", "Threads that each worker computes with.", registry=registry
        )
        self.worker_restarts = Counter(
            "damoserve_worker_restarts", "Workers that hung or died and were replaced.", registry=registry
        )
        self.pool_slots = Gauge(
            "damoserve_pool_slots", "Buffers for network inputs, `free` or `leased`.", ["state"], registry=registry
        )
        self.pool_high_water = Gauge(
            "damoserve_pool_slots_high_water",
            "Most buffers leased at the same time since the start.",
            registry=registry,
        )
        self.pool_bytes = Gauge("damoserve_pool_bytes", "Size of all these buffers.", registry=registry)

    def add_profile(self, profile: tuple[str, str]) -> None:
        """Creates the series of a profile."""
        self.batch_size.labels(*profile)
        for reason in Closing:
            self.batches.labels(*profile, reason)

    def watch_queue(self, decoding: Callable[[], int], ready: Callable[[], int]) -> None:
        """Reads the depth of the queue from these functions at every scrape."""
        self.queued.labels("decoding").set_function(decoding)
        self.queued.labels("ready").set_function(ready)

    def watch_pools(self, states: Mapping[str, Callable[[], int]], high_water: Callable[[], int]) -> None:
        """Reads the number of buffers from these functions at every scrape."""
        for state, slots in states.items():
            self.pool_slots.labels(state).set_function(slots)
        self.pool_high_water.set_function(high_water)
