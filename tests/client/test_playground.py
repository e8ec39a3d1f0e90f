"""The parts of the playground that need no browser; the page itself is tested in tests/e2e."""

import asyncio
import itertools
import math
import re
from pathlib import Path
from typing import NoReturn, cast

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from PIL import ImageColor

from damoserve.v1 import detection_pb2 as pb
from damoserve_client import AsyncClient, Box, DeadlineExceeded, Detection, DetectionResult, ProfileInfo, Timings
from damoserve_client.convert import to_profile
from damoserve_client.draw import CLASS_COLOURS, colour_of
from damoserve_client.errors import Failure, Unavailable
from damoserve_client.playground import figures
from damoserve_client.playground.comparison import compare, intersection_over_union
from damoserve_client.playground.load import MOST_CALLERS, Call, Load, intervals, percentile

STYLE = Path(figures.__file__).with_name("style.css")


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

    def test_scores_stand_apart_and_those_without_room_are_left_out(self) -> None:
        crowd = [cell(7 * index, score=0.9 - index / 100) for index in range(40)]
        html = figures.overlay(compare(crowd, crowd), (1000, 1000))
        texts = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]+)<', html)
        font = 1000 / 38
        spots = [(float(x), float(y), 0.6 * font * len(words)) for x, y, words in texts]
        assert 10 < len(spots) < 40
        assert texts[0][2] == "0.90"
        for (left, bottom, width), (x, y, other) in itertools.combinations(spots, 2):
            assert left + width <= x or x + other <= left or abs(bottom - y) >= font

    def test_texts_end_within_the_picture(self) -> None:
        html = figures.overlay(compare([cell(920)], []), (1000, 1000))
        (left,) = re.findall(r'<text x="([\d.]+)"', html)
        assert float(left) < 1000 - 0.55 * 1000 / 38 * len("+ 0.90")
        assert "+ " in html

    def test_what_an_older_server_does_not_tell_is_shown_as_the_last_stage(self) -> None:
        html = figures.stages(Timings(decode=0.001, queue=0.001, inference=0.005, postprocess=0.001, total=0.01), 0.01)
        names = re.findall(r"</i>([a-z ]+)</dt>", html)
        assert names == ["decode wait", "decode", "queue", "batch wait", "inference", "postprocess", "respond"]
        assert sum(map(float, re.findall(r"width:([\d.]+)%", html))) == pytest.approx(100)


def lab(colour: str) -> tuple[float, float, float]:
    """A colour in CIELAB under D65, where distances are about what the eye sees."""
    channels = [value / 255 for value in ImageColor.getrgb(colour)]
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels)
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.089
    f, g, h = (each ** (1 / 3) if each > 0.008856 else 7.787 * each + 16 / 116 for each in (x, y, z))
    return 116 * g - 16, 500 * (f - g), 200 * (g - h)


class TestColours:
    GREYS = tuple(re.findall(r"--(?:waits|stage-\d): (#\w{6})", STYLE.read_text()))

    def test_of_classes_profiles_and_time_are_not_mistaken_for_one_another(self) -> None:
        kinds = (CLASS_COLOURS, figures.PROFILE_COLOURS, (*self.GREYS, figures.TIME_COLOUR))
        assert len(self.GREYS) == 10
        for one, other in itertools.combinations(kinds, 2):
            for pair in itertools.product(one, other):
                assert math.dist(*map(lab, pair)) > 22, pair
        for kind, least in ((CLASS_COLOURS, 30), (figures.PROFILE_COLOURS, 15)):
            assert min(math.dist(lab(one), lab(other)) for one, other in itertools.combinations(kind, 2)) > least

    def test_time_is_grey(self) -> None:
        assert max(math.hypot(*lab(grey)[1:]) for grey in (*self.GREYS, figures.TIME_COLOUR)) < 10

    def test_a_profile_keeps_its_colour_wherever_it_is_shown(self) -> None:
        palette = figures.Palette()
        colours = [palette.of(name) for name in ("fp32", "int8", "pruned")]
        assert len(set(colours)) == 3
        rows = figures.candidates([profile("pruned"), profile("int8")], figures.Choice(None), palette)
        ticks = figures.ticks([profile("pruned")], lambda _: 0.5, palette)
        assert re.findall(r"background:(#\w{6})", rows + ticks) == [colours[2], colours[1], colours[2]]

    def test_a_class_has_one_colour_on_pictures_pages_and_legends(self) -> None:
        mark = compare([cell(0, label_id=1)], [])
        assert f'stroke="{colour_of(1)}"' in figures.overlay(mark, (640, 480))
        assert re.findall(r"background:(#\w{6})", figures.legend(["RBC", "WBC"])) == [colour_of(0), colour_of(1)]


def profile(name: str, accuracy: float = 0.6, latency: float = 0.01) -> ProfileInfo:
    return to_profile(
        pb.Profile(profile=name, average_precision=accuracy, expected_latency=Duration(nanos=round(1e9 * latency)))
    )


def answered(name: str, reason: str = "most_accurate_in_time") -> DetectionResult:
    timings = Timings(decode=0.001, queue=0.0, inference=0.01, postprocess=0.0, total=0.0123)
    return DetectionResult((), (640, 480), "blood-cells", 1, name, reason, 1, timings)


class TestTheRoutersChoice:
    LADDER = (profile("fp32", 0.64, 0.05), profile("int8", 0.62, 0.02), profile("pruned", 0.61, 0.01))

    def test_the_sentence_is_about_who_answered(self) -> None:
        for info in self.LADDER:
            choice = figures.Choice(0.1, answered(info.profile))
            better = [each.profile for each in self.LADDER if each.average_precision > info.average_precision]
            said = figures.why(choice, self.LADDER)
            assert said.startswith(
                f"The most accurate profile (AP {100 * info.average_precision:.1f}) that was expected"
            )
            assert "and within 100 ms" in said
            assert said.endswith(f"not expected in time: {', '.join(better)}.") is bool(better)
            assert figures.verdict(choice) == f"<strong>{info.profile}</strong> answered in 12.3 ms"
            assert re.findall(r'served"><th scope="row"><span[^>]*></span>([\w+]+)<', self.rows(choice)) == [
                info.profile
            ]

    def rows(self, choice: figures.Choice) -> str:
        return figures.candidates(self.LADDER, choice, figures.Palette())

    def test_that_it_is_the_quickest_as_well_is_said_of_the_most_accurate_and_quickest_alone(self) -> None:
        infos = (profile("int8+pruned", 0.632, 0.005), profile("fp32", 0.625, 0.05))
        assert "the quickest here as well" in figures.why(figures.Choice(0.1, answered("int8+pruned")), infos)
        assert "the quickest here as well" not in figures.why(figures.Choice(0.1, answered("fp32")), infos)
        assert "the quickest here as well" not in figures.why(figures.Choice(0.1, answered("int8+pruned")), infos[:1])

    def test_the_quickest_is_said_to_serve_where_the_server_says_so(self) -> None:
        said = figures.why(figures.Choice(None, answered("pruned", "quickest")), self.LADDER)
        assert said == "None was expected to meet the objective of the tier, so the quickest (AP 61.0) serves."

    def test_what_is_called_expected_is_what_the_refusal_compared(self) -> None:
        metadata = {"expected_ms": "31.5", "budget_ms": "20.0"}
        failure = Failure(grpc.StatusCode.DEADLINE_EXCEEDED, "no", "DEADLINE_UNREACHABLE", metadata)
        choice = figures.Choice(0.02, error=DeadlineExceeded(failure))
        said = figures.why(choice, self.LADDER)
        assert "was expected in 31.5 ms, not in 20.0 ms." in said
        assert said.endswith(DeadlineExceeded.advice)
        assert figures.verdict(choice) == "<strong>No answer</strong>"
        assert "expected" not in self.rows(choice)  # that is the network's time alone, and so it is called
        assert '<th scope="col">network</th>' in self.rows(choice)
        assert re.findall(r'<tr class="(\w*)">', self.rows(choice)) == ["slow", "", ""]

    def test_other_failures_are_told_as_the_server_tells_them(self) -> None:
        error = Unavailable(Failure(grpc.StatusCode.UNAVAILABLE, "the <server> is shutting down"))
        assert figures.why(figures.Choice(None, error=error), ()).startswith("The &lt;server&gt; is shutting down. ")


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
        asyncio.run(load.run(cast(AsyncClient, client)))
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
