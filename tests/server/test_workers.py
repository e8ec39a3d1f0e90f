"""One batch in a worker; how batches come together is in test_detect."""

import asyncio
from dataclasses import dataclass

import numpy as np
import pytest

from damoserve_profiles.postprocess import Detections
from damoserve_profiles.repository import Repository
from damoserve_server.catalogue import ActiveProfile
from damoserve_server.engines import EngineError
from damoserve_server.latency import LatencyEstimate
from damoserve_server.workers import Inference, Job, Worker


@dataclass
class Echo:
    """Scores are the mean of each image; `lost` answers are left out."""

    lost: int = 0

    def run(self, images):
        answers = len(images) - self.lost
        scores = images.mean(axis=(1, 2, 3), dtype=np.float32).reshape(-1, 1, 1)[:answers]
        return scores, np.zeros((answers, 1, 4), np.float32)


@pytest.fixture
def compute(pristine):
    manifest = Repository(pristine).folder("colours", 3, "quick").read_manifest()

    def run(engine, values, select):
        profile = ActiveProfile(manifest, [engine], LatencyEstimate({1: 1.0}), lambda: engine)
        rows = [np.full((32, 64, 3), value, np.uint8) for value in values]
        with asyncio.Runner() as runner:
            jobs = [Job(row, select, runner.get_loop().create_future()) for row in rows]
        return Worker(0, [profile], max_batch_size=4).compute(profile, jobs)

    return run


def keep(scores, boxes):
    return Detections(boxes, scores[0], np.zeros(1, np.int64))


def refuse_seven(scores, boxes):
    if scores[0] == 7:
        raise ZeroDivisionError
    return keep(scores, boxes)


@pytest.mark.parametrize("values", [[5], [5, 6], [1, 2, 3, 4]])
def test_each_image_gets_its_own_answer(compute, values):
    outcomes = compute(Echo(), values, keep)
    assert [outcome.detections.scores[0] for outcome in outcomes] == values
    assert {outcome.batch_size for outcome in outcomes} == {len(values)}


def test_missing_answers_fail_the_whole_batch(compute):
    outcomes = compute(Echo(lost=1), [1, 2, 3], keep)
    assert [type(outcome) for outcome in outcomes] == [EngineError] * 3


def test_what_fails_for_one_image_fails_that_one_only(compute):
    outcomes = compute(Echo(), [6, 7, 8], refuse_seven)
    assert [type(outcome) for outcome in outcomes] == [Inference, ZeroDivisionError, Inference]
