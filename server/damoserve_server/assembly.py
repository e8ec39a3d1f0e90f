"""Builds what a server computes with: the split of the cores, the loader of profiles, the detector, the tracer."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import cv2

from damoserve_profiles.repository import Repository
from damoserve_server.configuration.settings import Settings, usable_cores
from damoserve_server.detection.detector import Detector
from damoserve_server.detection.worker_pool import WorkerLimits, WorkerPool
from damoserve_server.engines.engine import EngineLoader, EngineOptions, GpuOptions
from damoserve_server.inputs.images import ImageLimits, ImageReader
from damoserve_server.metrics.metrics import Metrics
from damoserve_server.models.catalogue import Catalogue
from damoserve_server.models.core_split import CoreSplit, SplitTrial, possible_splits
from damoserve_server.models.loading import ProfileLoader
from damoserve_server.scheduling.policy import Policy
from damoserve_server.telemetry.settings import TracingSettings
from damoserve_server.telemetry.spans import Tracer


class Assembly:
    """Builds the parts of one server, as its settings say; in this order, each part needs the one before it."""

    def __init__(
        self, settings: Settings, load_engine: EngineLoader, policy: Policy, metrics: Metrics, stop: threading.Event
    ) -> None:
        """`stop` ends what takes long, with ShuttingDown."""
        gpu = GpuOptions(settings.gpu_device, settings.engine_cache, settings.gpu_memory_bytes)
        self._options = EngineOptions(settings.max_batch_size, 1, settings.providers, settings.engine, gpu)
        self._settings = settings
        self._load_engine = load_engine
        self._policy = policy
        self._metrics = metrics
        self._stop = stop

    def choose_core_split(self, repository: Repository) -> CoreSplit:
        """Returns the workers and threads that are set, or measures which are fastest. Takes seconds."""
        settings = self._settings
        # One worker keeps a GPU busy; to build engines for it only to measure could take minutes.
        cores = 1 if self._options.on_gpu else usable_cores()
        trial = SplitTrial(self._load_engine, self._options, settings.split_seconds, stop=self._stop)
        splits = possible_splits(cores, settings.workers, settings.threads_per_worker)
        return trial.best(splits, repository, settings.default_model)

    def make_loader(self, split: CoreSplit) -> ProfileLoader:
        """Returns what loads a profile with an engine for each worker of the split."""
        options = replace(self._options, threads=split.threads)
        return ProfileLoader(self._load_engine, options, split.workers, stop=self._stop)

    def build_detector(
        self, catalogue: Catalogue, split: CoreSplit, on_workers_changed: Callable[[int], None]
    ) -> Detector:
        """Starts the workers and returns the detector over them.

        `on_workers_changed` is called on the event loop with the number of workers that can compute.
        """
        settings = self._settings
        # Each image is decoded and resized by one thread; a second layer of threads would only compete with them.
        cv2.setNumThreads(1)
        decoders = ThreadPoolExecutor(usable_cores(), "decode")
        images = ImageReader(ImageLimits(settings.max_image_bytes, settings.max_pixels), decoders)
        limits = WorkerLimits(
            split.workers, settings.max_batch_size, settings.max_queue, settings.worker_timeout_seconds
        )
        workers = WorkerPool(self._policy, limits, self._metrics, on_workers_changed)
        detector = Detector(settings, catalogue, images, workers, self._metrics)
        self._show(split, workers, detector)
        return detector

    def _show(self, split: CoreSplit, workers: WorkerPool, detector: Detector) -> None:
        """Lets the metrics read what workers and buffers are doing."""
        device = self._metrics.device
        device.worker_threads.set(split.threads)
        device.watch_pools({"free": detector.free_slots, "leased": detector.leased_slots}, detector.most_leased_slots)
        device.watch_queue(partial(workers.queued, ready=False), partial(workers.queued, ready=True))
        device.workers_busy.set_function(lambda: workers.busy)


def make_tracer(settings: TracingSettings) -> Tracer:
    """Returns a tracer that sends to the collector that is set; without one it records nothing."""
    if settings.endpoint is None:
        return Tracer()
    # Its packages are an extra, and are imported only where they are used.
    from damoserve_server.telemetry.opentelemetry import open_tracer

    return open_tracer(settings)
