"""What the statistics and the parameters of an answer say of times that are known."""

import time
from pathlib import Path

import numpy as np
import pytest

from damoserve.kserve.v2 import inference_pb2 as pb
from damoserve_profiles.imaging import Size
from damoserve_profiles.postprocess import Detections
from damoserve_profiles.repository import Repository
from damoserve_server.detection.request import DetectionResult, Timings
from damoserve_server.kserve.encode import to_response
from damoserve_server.kserve.statistics import Statistics
from damoserve_server.kserve.targets import Target
from damoserve_server.models.catalogue import ActiveProfile, Model
from damoserve_server.scheduling.latency import LatencyEstimate
from damoserve_server.scheduling.selection import Reason

NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
TIMINGS = Timings(
    decode_wait=0.001,
    decode=0.002,
    queue=0.030,
    batch_wait=0.004,
    inference=0.500,
    postprocess=0.006,
    respond=0.007,
)


@pytest.fixture
def profiles(pristine: Path) -> list[ActiveProfile]:
    """`accurate` and `quick` of the model `colours`, version 3."""
    folders = Repository(pristine).profiles("colours", 3)
    return [
        ActiveProfile(folder.read_manifest(), [], LatencyEstimate({1: 1.0}), lambda: pytest.fail("nothing is run"))
        for folder in folders
    ]


def result(profile: ActiveProfile, batch_size: int = 1, timings: Timings = TIMINGS) -> DetectionResult:
    return DetectionResult(NOTHING, Size(8, 4), profile, Reason.REQUESTED, batch_size, timings)


def twice(timings: Timings) -> Timings:
    return Timings(*(2 * seconds for seconds in timings.stages))


def told(duration: pb.StatisticDuration) -> tuple[int, int]:
    return duration.count, duration.ns


def stages(message: pb.InferStatistics | pb.InferBatchStatistics) -> dict[str, tuple[int, int]]:
    return {field.name: told(value) for field, value in message.ListFields() if field.name != "batch_size"}


def test_the_times_of_an_answer_are_in_microseconds_and_the_longest_of_its_images(
    profiles: list[ActiveProfile],
) -> None:
    accurate, quick = profiles
    answer = to_response(pb.ModelInferRequest(), [result(quick, 4), result(accurate, 2, twice(TIMINGS))], ())
    numbers = {name: value.int64_param for name, value in answer.parameters.items()}
    assert (numbers["queue_us"], numbers["compute_us"], numbers["batch_size"]) == (68_000, 1_000_000, 4)
    assert answer.parameters["profile"].string_param == "quick,accurate"
    assert answer.parameters["selection_reason"].string_param == "requested"
    assert (answer.model_name, answer.model_version) == ("colours", "3")


def test_a_request_counts_for_its_model_and_profile_with_its_slowest_image(
    profiles: list[ActiveProfile], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, quick = profiles
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.5)
    statistics = Statistics()
    statistics.succeeded([result(quick), result(quick, timings=twice(TIMINGS))], 1.25)
    model = Model("colours", 3, tuple(profiles))
    for target in (Target(model), Target(model, quick)):
        message = statistics.of(target)
        assert (message.name, message.version) == (target.name, "3")
        assert (message.inference_count, message.execution_count) == (2, 2)
        assert message.last_inference == 1_700_000_000_500
        assert stages(message.inference_stats) == {
            "success": (1, 1_250_000_000),
            "queue": (1, 68_000_000),
            "compute_input": (1, 4_000_000),
            "compute_infer": (1, 1_000_000_000),
            "compute_output": (1, 12_000_000),
        }
    unused = statistics.of(Target(model, profiles[0]))
    assert (unused.inference_count, unused.last_inference) == (0, 0)


def test_images_of_a_batch_share_its_run(profiles: list[ActiveProfile]) -> None:
    """Each knows the time of the whole, 0.5 s: four images of one batch of four are one run, alone or among others."""
    _, quick = profiles
    statistics = Statistics()
    statistics.succeeded([result(quick, 4)] * 3, 1.0)
    statistics.succeeded([result(quick, 4)], 1.0)
    statistics.succeeded([result(quick, 2)], 1.0)
    message = statistics.of(Target(Model("colours", 3, tuple(profiles)), quick))
    assert (message.inference_count, message.execution_count) == (5, 2)  # half a run is rounded
    pair, four = message.batch_stats
    assert (pair.batch_size, four.batch_size) == (2, 4)
    assert stages(four) == {
        "compute_input": (1, 8_000_000),  # each image is decoded by itself
        "compute_infer": (1, 500_000_000),
        "compute_output": (1, 24_000_000),
    }
    assert pair.compute_infer.ns == 250_000_000


def test_a_failure_counts_once_for_the_model_and_for_a_profile_that_was_named(profiles: list[ActiveProfile]) -> None:
    accurate, quick = profiles
    statistics = Statistics()
    model = Model("colours", 3, tuple(profiles))
    statistics.failed(Target(model), 0.25)
    statistics.failed(Target(model, quick), 0.5)
    fails = [told(statistics.of(Target(model, each)).inference_stats.fail) for each in (None, quick, accurate)]
    assert fails == [(2, 750_000_000), (1, 500_000_000), (0, 0)]
    assert statistics.of(Target(Model("colours", 4), None)).inference_stats.fail.count == 0
