"""One batch in a worker, and workers that fail; how batches come together is in test_detect."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from damoserve.kserve.v2 import inference_pb2 as kserve
from damoserve.v1 import admin_pb2
from damoserve_profiles.manifest import Manifest
from damoserve_profiles.postprocess import Detections
from damoserve_profiles.repository import Repository
from damoserve_server.detection.request import DetectionRequest
from damoserve_server.detection.worker import Inference, Job, JobBatch, JobOutcome, Select, Worker
from damoserve_server.engines.engine import Engine, EngineError, EngineOptions, Outputs
from damoserve_server.engines.onnxruntime import OnnxRuntimeEngine
from damoserve_server.inputs.buffers import Pool
from damoserve_server.models.catalogue import ActiveProfile
from damoserve_server.scheduling.latency import LatencyEstimate
from damoserve_server.scheduling.policy import Requirements
from damoserve_server.scheduling.scheduler import Batch, Ticket
from tests.support.administration import administered
from tests.support.pictures import Pictures
from tests.support.server import Serve, ServerClient

REQUEST = DetectionRequest(b"", arrival=0.0, deadline=9.0)


@dataclass
class Echo:
    """Scores are the mean of each image; `lost` answers are left out."""

    lost: int = 0

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        answers = len(images) - self.lost
        scores = images.mean(axis=(1, 2, 3), dtype=np.float32).reshape(-1, 1, 1)[:answers]
        return scores, np.zeros((answers, 1, 4), np.float32)


@dataclass
class OneBatch:
    """Has work for a worker once."""

    batch: JobBatch | None
    outcomes: list[JobOutcome] = field(default_factory=list)

    def next_batch(self, worker: Worker) -> JobBatch | None:
        batch, self.batch = self.batch, None
        return batch

    def finish(self, worker: Worker, batch: JobBatch, outcomes: list[JobOutcome]) -> None:
        self.outcomes = outcomes

    def died(self, worker: Worker) -> None:
        raise AssertionError


class Compute(Protocol):
    """Computes one batch of images of these values, and returns what a worker made of it."""

    def __call__(self, engine: Engine, values: list[int], select: Select, **fields: Any) -> list[JobOutcome]: ...


@pytest.fixture
def compute(pristine: Path) -> Compute:
    manifest = Repository(pristine).folder("colours", 3, "quick").read_manifest()

    def run(engine: Engine, values: list[int], select: Select, **fields: Any) -> list[JobOutcome]:
        estimate = LatencyEstimate(dict.fromkeys(range(1, 5), 1.0))
        profile = ActiveProfile(manifest, [engine], estimate, new_engine=lambda: engine)
        pool = Pool(len(values), profile.size)
        leases = [pool.lease() for _ in values]
        for lease, value in zip(leases, values, strict=True):
            lease.row[:] = value
        requirements = Requirements((profile,), deadline=9.0, due=9.0, arrival=0.0)
        with asyncio.Runner() as runner:
            tickets = [
                Ticket(requirements, 0.0, Job(REQUEST, lease, select, runner.get_loop().create_future()), True)
                for lease in leases
            ]
        source = OneBatch(Batch(profile, tuple(tickets), 0.0, 1.0))
        worker = Worker(0, max_batch_size=4, source=source, **fields)
        worker.start()
        worker.join(20)
        return source.outcomes

    return run


def keep(job: Job, profile: ActiveProfile, scores: NDArray[np.float32], boxes: NDArray[np.float32]) -> Detections:
    return Detections(boxes, scores[0], np.zeros(1, np.int64))


def refuse_seven(
    job: Job, profile: ActiveProfile, scores: NDArray[np.float32], boxes: NDArray[np.float32]
) -> Detections:
    if scores[0] == 7:
        raise ZeroDivisionError
    return keep(job, profile, scores, boxes)


@pytest.mark.parametrize("values", [[5], [5, 6], [1, 2, 3, 4]])
def test_each_image_gets_its_own_answer(compute: Compute, values: list[int]) -> None:
    outcomes = compute(Echo(), values, keep)
    inferences = [outcome for outcome in outcomes if isinstance(outcome, Inference)]
    assert [outcome.detections.scores[0] for outcome in inferences] == values
    assert {outcome.batch_size for outcome in inferences} == {len(values)}


def test_missing_answers_fail_the_whole_batch(compute: Compute) -> None:
    outcomes = compute(Echo(lost=1), [1, 2, 3], keep)
    assert [type(outcome) for outcome in outcomes] == [EngineError] * 3


def test_what_fails_for_one_image_fails_that_one_only(compute: Compute) -> None:
    outcomes = compute(Echo(), [6, 7, 8], refuse_seven)
    assert [type(outcome) for outcome in outcomes] == [Inference, ZeroDivisionError, Inference]


def test_outcomes_of_an_abandoned_worker_are_not_learned_from(compute: Compute) -> None:
    [hung] = compute(Echo(), [5], keep, abandoned=True)
    assert isinstance(hung, Inference)
    assert hung.profile.latency.expected() == 1.0
    [sound] = compute(Echo(), [5], keep)
    assert isinstance(sound, Inference)
    assert sound.profile.latency.expected() < 1.0


class Faulty:
    """Loads engines of which the first, once armed, does `fault` in its next run; later ones are sound."""

    def __init__(self, fault: Callable[[], object]) -> None:
        self.fault = fault
        self.armed = threading.Event()
        self.loaded = 0

    def load(self, model: bytes, manifest: Manifest, options: EngineOptions) -> Engine:
        self.loaded += 1
        return _FaultyEngine(OnnxRuntimeEngine(model, manifest, options), self)


@dataclass
class _FaultyEngine:
    engine: OnnxRuntimeEngine
    faulty: Faulty

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        if self.faulty.armed.is_set():
            self.faulty.armed.clear()
            self.faulty.fault()
        return self.engine.run(images)


async def test_a_worker_that_hangs_is_replaced_and_its_requests_are_answered(serve: Serve, pictures: Pictures) -> None:
    let_go = threading.Event()
    faulty = Faulty(lambda: let_go.wait(20))
    async with serve(faulty.load, worker_timeout_seconds=0.2) as client:
        loaded = faulty.loaded
        faulty.armed.set()
        lost = await client.failure(client.detect(pictures.red, profile="quick"))
        await client.until(lambda now: now.sum("damoserve_workers") == 1)
        answer = await client.detect(pictures.red, profile="quick")
        metrics = await client.metrics()
        let_go.set()
        loaded_again = faulty.loaded - loaded
    assert (lost.code, lost.reason) == (grpc.StatusCode.UNAVAILABLE, "WORKERS_LOST")
    assert answer.profile == "quick"
    assert loaded_again == 2  # an engine of each profile
    assert metrics.sum("damoserve_worker_restarts_total") == 1


async def test_a_worker_that_dies_is_replaced_and_its_requests_are_answered(serve: Serve, pictures: Pictures) -> None:
    def die() -> None:
        raise SystemExit

    faulty = Faulty(die)
    async with serve(faulty.load) as client:
        faulty.armed.set()
        lost = await client.failure(client.detect(pictures.red, profile="quick"))
        await client.until(lambda now: now.sum("damoserve_workers") == 1)
        answer = await client.detect(pictures.red, profile="quick")
    assert lost.reason == "WORKERS_LOST"
    assert answer.profile == "quick"


async def test_an_engine_that_raises_is_made_anew(serve: Serve, pictures: Pictures) -> None:
    def fail() -> None:
        raise RuntimeError("the device is gone")

    faulty = Faulty(fail)
    async with serve(faulty.load) as client:
        loaded = faulty.loaded
        faulty.armed.set()
        failure = await client.failure(client.detect(pictures.red, profile="quick"))
        answer, loaded_again = await client.detect(pictures.red, profile="quick"), faulty.loaded - loaded
    assert (failure.code, failure.message) == (grpc.StatusCode.INTERNAL, "internal error")
    assert answer.profile == "quick"
    assert loaded_again == 1


class Stuck:
    """Loads engines of which the first, once armed, hangs in a run for good; `shared` if another thread used it too."""

    def __init__(self) -> None:
        self.armed = threading.Event()
        self.let_go = threading.Event()
        self.shared = False

    def load(self, model: bytes, manifest: Manifest, options: EngineOptions) -> Engine:
        return _StuckEngine(OnnxRuntimeEngine(model, manifest, options), self)


@dataclass
class _StuckEngine:
    engine: OnnxRuntimeEngine
    stuck: Stuck
    hangs: bool = False

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        self.stuck.shared |= self.hangs
        if self.stuck.armed.is_set():
            self.stuck.armed.clear()
            self.hangs = True
            self.stuck.let_go.wait(20)
        return self.engine.run(images)


async def test_the_worker_after_one_that_hangs_makes_its_own_engine_even_of_a_profile_that_was_unloaded(
    serve: Serve, pictures: Pictures
) -> None:
    stuck = Stuck()
    async with administered(serve, stuck.load, worker_timeout_seconds=0.5) as (client, admin):
        stuck.armed.set()
        hanging = asyncio.ensure_future(client.failure(client.detect(pictures.red, profile="quick")))
        while stuck.armed.is_set():
            await asyncio.sleep(0)
        waiting = asyncio.ensure_future(client.detect(pictures.red, profile="quick"))
        await client.until(lambda now: now.sum("damoserve_queued_requests", state="ready") == 1)
        await admin.UnloadProfile(admin_pb2.UnloadProfileRequest(profile="quick"))
        lost, answer = await hanging, await waiting
        stuck.let_go.set()
    assert lost.reason == "WORKERS_LOST"
    assert answer.profile == "quick"
    assert not stuck.shared


async def test_a_server_without_workers_is_not_ready_in_either_protocol(serve: Serve, pictures: Pictures) -> None:
    let_go, made = threading.Event(), threading.Event()
    faulty = Faulty(lambda: let_go.wait(20))

    def load(model: bytes, manifest: Manifest, options: EngineOptions) -> Engine:
        assert made.wait(20)
        return faulty.load(model, manifest, options)

    async def readiness(client: ServerClient) -> tuple[str, bool]:
        ready = client.channel.unary_unary(
            "/inference.GRPCInferenceService/ServerReady",
            request_serializer=kserve.ServerReadyRequest.SerializeToString,
            response_deserializer=kserve.ServerReadyResponse.FromString,
        )
        return await client.health(), (await ready(kserve.ServerReadyRequest())).ready

    made.set()
    async with serve(load, worker_timeout_seconds=0.2) as client:
        made.clear()
        faulty.armed.set()
        await client.failure(client.detect(pictures.red, profile="quick"))
        without = await readiness(client)
        made.set()
        await client.until(lambda now: now.sum("damoserve_workers") == 1)
        let_go.set()
        result = without, await readiness(client)
    assert result == (("NOT_SERVING", False), ("SERVING", True))


async def test_without_workers_requests_are_refused_at_once_and_not_let_in(serve: Serve, pictures: Pictures) -> None:
    let_go, made = threading.Event(), threading.Event()
    faulty = Faulty(lambda: let_go.wait(20))

    def load(model: bytes, manifest: Manifest, options: EngineOptions) -> Engine:
        assert made.wait(20)
        return faulty.load(model, manifest, options)

    made.set()
    async with serve(load, worker_timeout_seconds=0.2) as client:
        made.clear()
        faulty.armed.set()
        await client.failure(client.detect(pictures.red, profile="quick"))
        refused = await client.failure(client.detect(pictures.red, timeout=2.0))
        metrics = await client.metrics()
        made.set()
        await client.until(lambda now: now.sum("damoserve_workers") == 1)
        let_go.set()
        answer = await client.detect(pictures.red)
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "WORKERS_LOST")
    assert metrics.sum("damoserve_queued_requests") == 0
    assert metrics.sum("damoserve_refused_total", reason="WORKERS_LOST") == 2
    assert len(answer.detections) == 4


@dataclass
class _ClosableEngine:
    engine: OnnxRuntimeEngine
    closed: list[bool]
    hang: threading.Event | None = None
    running: bool = False

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        self.running = True
        if self.hang is not None:
            self.hang.wait(20)
        outputs = self.engine.run(images)
        self.running = False
        return outputs

    def close(self) -> None:
        self.closed.append(self.running)


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_stopping_server_closes_engines_unless_one_still_computes(
    serve: Serve, pictures: Pictures, hangs: bool
) -> None:
    let_go = threading.Event()
    engines: list[_ClosableEngine] = []
    calls: list[Any] = []
    closed: list[bool] = []

    def load(model: bytes, manifest: Manifest, options: EngineOptions) -> Engine:
        engines.append(_ClosableEngine(OnnxRuntimeEngine(model, manifest, options), closed))
        return engines[-1]

    async with serve(load, worker_timeout_seconds=2, drain_seconds=0) as client:
        await client.detect(pictures.red)
        if hangs:
            for engine in engines:
                engine.hang = let_go
            calls.append(client.detect(pictures.red))  # ends with the connection
            while not any(engine.running for engine in engines):
                await asyncio.sleep(0)
    let_go.set()
    assert closed == ([] if hangs else [False, False])
