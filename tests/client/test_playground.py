"""The parts of the playground that need no browser; the page itself is tested in tests/e2e."""

import asyncio
import re
from typing import NoReturn

import grpc
import pytest

from damoserve_client import Box, Detection, Timings
from damoserve_client.errors import Failure, Unavailable
from damoserve_client.playground import figures
from damoserve_client.playground.comparison import compare, intersection_over_union
from damoserve_client.playground.load import MOST_CALLERS, Call, Load, intervals, percentile


def cell(x: float, score: float = 0.9, label_id: int = 0) -> Detection:
    return Detection("RBC" if label_id == 0 else "<b>", label_id, score, Box(x, 0, x + 100, 100))


class TestComparison:
    def test_boxes_of_one_class_that_overlap_by_half_are_one_object(self) -> None:
        reference = [cell(0), cell(200), cell(400)]
        found = [cell(2), cell(230), cell(470), cell(600, label_id=1)]
        marks = compare(found, reference)
        assert [mark.kind for mark in marks] == ["same", "moved", "extra", "extra", "missing"]
        assert marks[-1].detection is reference[2]
        assert marks[1].partner is reference[1]

    def test_another_class_is_another_object(self) -> None:
        assert [mark.kind for mark in compare([cell(0, label_id=1)], [cell(0)])] == ["extra", "missing"]

    def test_a_box_of_the_reference_is_taken_once_by_the_best_score(self) -> None:
        marks = compare([cell(4, score=0.6), cell(3, score=0.8)], [cell(0)])
        assert [mark.kind for mark in marks] == ["extra", "same"]

    def test_the_reference_is_the_same_as_itself(self) -> None:
        cells = [cell(0), cell(30), cell(60)]
        assert {mark.kind for mark in compare(cells, cells)} == {"same"}

    @pytest.mark.parametrize(("shift", "overlap"), [(0, 1.0), (50, 1 / 3), (100, 0.0), (500, 0.0)])
    def test_overlap(self, shift: float, overlap: float) -> None:
        assert intersection_over_union(cell(0).box, cell(shift).box) == pytest.approx(overlap)


class TestFigures:
    def test_names_from_elsewhere_are_no_markup(self) -> None:
        marks = compare([cell(0, label_id=1)], [])
        for html in (
            figures.overlay(marks, (640, 480)),
            figures.table_of_boxes(marks),
            figures.legend(["<b>"]),
            figures.differences(compare([cell(0)], [cell(0)]), "<b>"),
        ):
            assert "<b>" not in html

    def test_what_differs_is_counted(self) -> None:
        html = figures.differences(compare([cell(0), cell(500)], [cell(30), cell(800)]), "fp32")
        assert [kind for kind in ("1 missing", "1 extra", "1 moved") if kind in html] == [
            "1 missing",
            "1 extra",
            "1 moved",
        ]

    def test_the_sign_of_a_difference_stands_before_its_score(self) -> None:
        html = figures.overlay(compare([cell(0), cell(500)], [cell(30), cell(800)]), (1000, 1000))
        assert re.findall(r"([~+−]) \d\.\d\d</text>", html) == ["~", "+", "−"]

    def test_texts_end_within_the_picture(self) -> None:
        html = figures.overlay(compare([cell(920)], []), (1000, 1000))
        (left,) = re.findall(r'<text x="([\d.]+)"', html)
        assert float(left) < 905
        assert "+ " in html

    def test_what_an_older_server_does_not_tell_is_shown_as_the_last_stage(self) -> None:
        html = figures.stages(Timings(decode=0.001, queue=0.001, inference=0.005, postprocess=0.001, total=0.01), 0.01)
        names = re.findall(r"</i>([a-z ]+)</dt>", html)
        assert names == ["decode wait", "decode", "queue", "batch wait", "inference", "postprocess", "respond"]
        assert sum(map(float, re.findall(r"width:([\d.]+)%", html))) == pytest.approx(100)


class TestLoad:
    @pytest.mark.parametrize(("share", "value"), [(0.5, 5.0), (0.95, 10.0), (0.0, 1.0)])
    def test_percentiles(self, share: float, value: float) -> None:
        assert percentile([float(number) for number in range(1, 11)], share) == value

    def test_there_is_no_percentile_of_nothing(self) -> None:
        assert percentile([], 0.5) is None

    def test_calls_are_sorted_by_when_they_ended(self) -> None:
        calls = [Call(0.1, 0.02, "fp32"), Call(0.2, 0.04, "int8"), Call(1.2, 0.03, "int8"), Call(1.3, 0.01, None)]
        first, second, third = intervals(calls)
        assert (first.begin, first.p50, first.p95, first.calls_by_profile) == (0, 0.02, 0.04, {"fp32": 1, "int8": 1})
        assert (second.p50, second.calls_by_profile, second.failed) == (None, {}, 0)
        assert (third.begin, third.p50, third.calls_by_profile, third.failed) == (1.0, 0.03, {"int8": 1}, 1)

    def test_callers_are_bounded_and_what_they_met_is_counted(self) -> None:
        client = Away()
        load = Load(b"", {"tier": "realtime"}, callers=MOST_CALLERS + 10, seconds=0.2)
        asyncio.run(load.run(client))
        assert client.most == MOST_CALLERS
        assert len(load.calls) >= MOST_CALLERS
        assert load.errors == {"Unavailable": len(load.calls)}
        assert all(call.profile is None for call in load.calls)


class Away:
    """A client whose server cannot be reached; knows how many calls were open at most."""

    def __init__(self) -> None:
        self.open = self.most = 0

    async def detect(self, _: bytes, *, tier: str) -> NoReturn:
        self.open += 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(0.02)
        self.open -= 1
        raise Unavailable(Failure(grpc.StatusCode.UNAVAILABLE, f"no server for {tier}"))
