"""Times that can be compared: interleaved runs, ratios of pairs, and the machine that they are of."""

import numpy as np

from damoserve_compress.measure.timing import interleave, speed_up, summarise


def test_runs_are_interleaved_and_warm_up_is_left_out() -> None:
    calls: list[str] = []
    times = interleave([lambda: calls.append("a"), lambda: calls.append("b")], rounds=3, warm_up=2)
    assert calls == ["a", "b"] * 5
    assert times.shape == (3, 2)


def test_the_speed_up_is_the_median_of_pairs() -> None:
    milliseconds = np.array([[10.0, 5.0], [20.0, 5.0], [30.0, 10.0]])
    ratio = speed_up(milliseconds, column=1)
    assert (ratio.lower, ratio.median, ratio.upper) == (2.5, 3.0, 3.5)


def test_a_summary_names_the_machine() -> None:
    latency = summarise(np.array([1.0, 2.0, 9.0]), threads=1)
    assert latency.median_ms == 2
    assert latency.runs == 3
    assert latency.cpu
    assert latency.instruction_set
    assert latency.runtime.startswith("onnxruntime ")
