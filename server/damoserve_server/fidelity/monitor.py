"""Re-runs sampled answers on the reference profile of their model, in a thread and with engines of its own.

Neither the scheduler nor the latency estimates know of it. A run starts only while no request is in the server; where
the engine can be interrupted, the next arrival ends it within about a millisecond, and the sample is tried again later.
"""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from math import inf
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from damoserve_profiles.agreement import Comparison, reference_of
from damoserve_profiles.imaging import Size
from damoserve_server.engines.engine import Engine, Interruptible, Outputs, close_engine
from damoserve_server.fidelity.metrics import FidelityMetrics
from damoserve_server.fidelity.samples import Sample, SampleRows, comparable
from damoserve_server.fidelity.settings import FidelitySettings
from damoserve_server.models.catalogue import ActiveProfile

SETTLE_SECONDS = 0.01
"""Seconds without a request before a run begins: a caller that asks again at once is not to meet one."""
QUIET_RUNS = 10
"""The same for an engine that cannot be interrupted, as a multiple of a run: long quiet is likely to stay so."""
REST_RUNS = 9
"""Pause after a run, as a multiple of it: whatever it costs requests, in cache or in memory, it does so at most a tenth
of the time."""
JOIN_SECONDS = 1.0
"""Seconds that a stopping server waits for a run that cannot be interrupted."""

log = logging.getLogger(__name__)


class FidelityMonitor:
    """Samples answers and compares them with the reference's, in a thread. Without a share there is no thread.

    `add`, `remove` and `pause` are for the event loop, `offer` is for workers.
    """

    def __init__(self, settings: FidelitySettings, metrics: FidelityMetrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._changed = threading.Condition()
        """Guards everything below."""
        self._profiles: set[ActiveProfile] = set()
        self._references: dict[ActiveProfile, ActiveProfile] = {}
        """Reference of each profile that is not the reference itself."""
        self._engines: dict[ActiveProfile, Engine | None] = {}
        """Engine of each reference; None if it could not be made."""
        self._samples: deque[Sample] = deque()
        self._rows = SampleRows(settings.kept_images)
        self._requests = 0
        self._idle_since = time.monotonic()
        self._rest_until = -inf
        self._running: Engine | None = None
        self._interrupted = False
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="fidelity", daemon=True)
        if settings.share:
            self._thread.start()

    def add(self, profiles: Collection[ActiveProfile]) -> None:
        """Adds profiles that will serve; the engines to compare them with are made at once, as part of loading them."""
        if self._settings.share:
            for profile in profiles:
                self._metrics.add_profile(profile.manifest)
        with self._changed:
            self._profiles |= set(profiles)
            self._update_references()

    def remove(self, profiles: Iterable[ActiveProfile]) -> None:
        """Removes profiles, with the samples of and for them. Nothing refers to them once a run has ended."""
        with self._changed:
            for profile in profiles:
                self._profiles.discard(profile)
                self._metrics.expect(*profile.key, None)
            self._update_references()
            self._interrupt()

    def wait_until_ready(self) -> None:
        """Waits until the engines are made, or the monitor is closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._settings.share or self._reference_without_engine() is None
            )

    def close(self) -> None:
        """Forgets the samples that wait, and ends the thread."""
        with self._changed:
            self._closed = True
            self._samples.clear()
            self._interrupt()
            self._changed.notify_all()
        if self._settings.share:
            self._thread.join(JOIN_SECONDS)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Interrupts the run, and lets none begin while the block, which is a request, lasts."""
        if not self._settings.share:
            yield
            return
        with self._changed:
            self._requests += 1
            self._interrupt()
        try:
            yield
        finally:
            with self._changed:
                self._requests -= 1
                self._idle_since = time.monotonic()
                if self._samples and not self._requests:
                    self._changed.notify_all()

    def offer(self, profile: ActiveProfile, row: NDArray[np.uint8], outputs: Outputs, shown: Size) -> None:
        """Takes an answer and its network input as a sample, by chance: copies them if there is room."""
        if random.random() >= self._settings.share:
            return
        with self._changed:
            reference = self._references.get(profile)
            copy = self._reserve_row(profile, reference) if reference is not None else None
        if reference is None or copy is None:
            return
        np.copyto(copy, row)
        scores, boxes = outputs
        sample = Sample(profile, reference, copy, (scores.copy(), boxes.copy()), shown)
        with self._changed:
            if self._is_outdated(sample):
                self._finish_sample(sample, "dropped_unloaded")
                return
            self._samples.append(sample)
            if not self._requests:  # else the last of them wakes the thread
                self._changed.notify_all()

    def _reserve_row(self, profile: ActiveProfile, reference: ActiveProfile) -> NDArray[np.uint8] | None:
        """Returns a row for the input of an answer of this profile; None if the answer is not to be kept."""
        if not comparable(profile, reference):
            self._metrics.count(profile.manifest, "not_comparable")
            return None
        row = self._rows.lend(profile.size)
        if row is None:
            self._metrics.count(profile.manifest, "dropped_busy")
        return row

    def _finish_sample(self, sample: Sample, result: str) -> None:
        """Takes the row of a sample back, and counts what became of it."""
        self._rows.take_back(sample.row)
        self._metrics.count(sample.profile.manifest, result)

    def _is_outdated(self, sample: Sample) -> bool:
        return self._references.get(sample.profile) is not sample.reference

    def _update_references(self) -> None:
        """Finds the references anew; forgets the engines, and drops the samples, of former ones."""
        self._references.clear()
        for _, group in groupby(sorted(self._profiles, key=_version), key=_version):
            self._set_reference(list(group))
        usable = self._usable_references()
        self._engines = {profile: engine for profile, engine in self._engines.items() if profile in usable}
        for sample in filter(self._is_outdated, self._samples):
            self._finish_sample(sample, "dropped_unloaded")
        self._samples = deque(sample for sample in self._samples if not self._is_outdated(sample))
        self._changed.notify_all()

    def _set_reference(self, profiles: list[ActiveProfile]) -> None:
        by_name = {profile.name: profile for profile in profiles}
        reference = self._settings.reference
        if reference not in by_name:
            reference = reference_of(profile.manifest for profile in profiles).profile
        for profile in profiles:
            if profile.name != reference:
                self._references[profile] = by_name[reference]
            known = profile.manifest.agreement
            promised = known.f1 if known is not None and known.reference == reference else None
            self._metrics.expect(*profile.key, promised)

    def _usable_references(self) -> set[ActiveProfile]:
        """Returns the references that some profile can be compared with."""
        return {reference for profile, reference in self._references.items() if comparable(profile, reference)}

    def _reference_without_engine(self) -> ActiveProfile | None:
        """Returns a reference that has no engine yet, if there is one."""
        return next(iter(self._usable_references() - self._engines.keys()), None)

    def _interrupt(self) -> None:
        if _can_be_interrupted(self._running) and not self._interrupted:
            self._interrupted = True
            self._running.interrupt()

    def _loop(self) -> None:
        while self._do_next():
            pass
        for engine in self._engines.values():
            if engine is not None:
                close_engine(engine)

    def _do_next(self) -> bool:
        """Compares a sample, or makes the engine of a reference. Returns False when there is no more to do.

        Nothing refers to either afterwards: its profile may have been dropped, and is freed with the last reference.
        """
        next_task = self._next_task()
        if isinstance(next_task, Sample):
            self._run(next_task)
        elif next_task is not None:
            self._make_engine(next_task)
        return next_task is not None

    def _next_task(self) -> Sample | ActiveProfile | None:
        """Waits for a sample to run, or a reference that has no engine; returns None when the thread is to end."""
        with self._changed:
            while not self._closed:
                reference = self._reference_without_engine()
                if reference is not None:
                    return reference
                wait = self._seconds_to_wait()
                if wait is not None and wait <= 0:
                    return self._take_sample()
                self._changed.wait(wait)
        return None

    def _seconds_to_wait(self) -> float | None:
        """Returns the seconds until the first sample may be run; None if something has to happen before."""
        if self._requests or not self._samples:
            return None
        reference = self._samples[0].reference
        promptly = _can_be_interrupted(self._engines[reference])
        quiet = SETTLE_SECONDS if promptly else QUIET_RUNS * reference.latency.expected()
        return max(self._idle_since + quiet, self._rest_until) - time.monotonic()

    def _take_sample(self) -> Sample:
        sample = self._samples.popleft()
        self._running, self._interrupted = self._engines[sample.reference], False
        if _can_be_interrupted(self._running):
            self._running.resume()
        return sample

    def _run(self, sample: Sample) -> None:
        started = time.monotonic()
        comparison: Comparison | None = None
        try:
            if self._running is not None:
                comparison = sample.compare(self._running.run(sample.row[None]))
        except Exception:
            if not self._interrupted:
                log.exception("%s could not be run for comparison", "/".join(sample.reference.key))
        with self._changed:
            self._running = None
            ended = time.monotonic()
            self._rest_until = ended + REST_RUNS * (ended - started)
            self._conclude_run(sample, comparison)

    def _conclude_run(self, sample: Sample, comparison: Comparison | None) -> None:
        if self._is_outdated(sample):
            self._finish_sample(sample, "dropped_unloaded")
        elif comparison is not None:
            self._metrics.observe(sample.profile.manifest, comparison)
            self._finish_sample(sample, "compared")
        elif self._interrupted:
            self._samples.appendleft(sample)
        else:
            self._finish_sample(sample, "failed")

    def _make_engine(self, reference: ActiveProfile) -> None:
        engine: Engine | None = None
        try:
            engine = reference.new_engine()
        except Exception:
            log.exception("%s cannot be compared with: its engine could not be made", "/".join(reference.key))
        with self._changed:
            if reference in self._usable_references():
                self._engines[reference] = engine
            self._changed.notify_all()


def _version(profile: ActiveProfile) -> tuple[str, int]:
    return profile.manifest.model, profile.manifest.version


def _can_be_interrupted(engine: Engine | None) -> TypeGuard[Interruptible]:
    # None first: every request asks, and to look for the methods of a protocol takes 11 us.
    return engine is not None and isinstance(engine, Interruptible) and engine.interruptible
