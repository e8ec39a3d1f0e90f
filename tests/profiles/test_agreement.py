"""Agreement of two profiles, and which of them is the reference."""

import numpy as np
import pytest

from damoserve_profiles.agreement import BoxCounts, compare, reference_of
from damoserve_profiles.manifest import Manifest
from damoserve_profiles.postprocess import Detections
from damoserve_profiles.repository import BUNDLED, Repository


def detections(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    """Rows of box, score, label."""
    array = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(array[:, :4], array[:, 4], array[:, 5].astype(np.int64))


ONE = detections((0, 0, 10, 10, 0.9, 0), (20, 0, 30, 10, 0.8, 1))


def test_the_same_boxes_agree() -> None:
    comparison = compare(ONE, ONE)
    assert comparison.by_label == {0: BoxCounts(1), 1: BoxCounts(1)}
    assert comparison.score_shifts.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("found", "reference"), [(ONE, detections()), (detections(), ONE), (detections(), detections())]
)
def test_nothing_matches_nothing(found: Detections, reference: Detections) -> None:
    comparison = compare(found, reference)
    counts = sum(comparison.by_label.values(), BoxCounts())
    assert counts == BoxCounts(0, len(reference.scores), len(found.scores))
    assert len(comparison.score_shifts) == 0


def test_a_box_of_another_class_is_missing_and_extra() -> None:
    found = detections((0, 0, 10, 10, 0.9, 2), (20, 0, 30, 10, 0.6, 1))
    comparison = compare(found, ONE)
    assert comparison.by_label == {0: BoxCounts(missing=1), 1: BoxCounts(1), 2: BoxCounts(extra=1)}
    assert comparison.score_shifts.tolist() == pytest.approx([0.2])


@pytest.mark.parametrize(("width", "matches"), [(10, True), (5, True), (4.9, False)])
def test_half_is_enough(width: float, matches: bool) -> None:
    found = detections((0, 0, width, 10, 0.9, 0))
    assert compare(found, detections((0, 0, 10, 10, 0.9, 0))).by_label[0].matched == matches


def test_the_best_score_chooses_first_and_takes_the_nearest() -> None:
    reference = detections((0, 0, 10, 10, 0.9, 0), (3, 0, 13, 10, 0.8, 0))
    found = detections((2, 0, 12, 10, 0.95, 0), (1, 0, 11, 10, 0.6, 0))
    # The first takes the second, though it would match both; so there is one left for the other.
    assert compare(found, reference).by_label == {0: BoxCounts(2)}
    assert compare(found, reference).score_shifts.tolist() == pytest.approx([0.15, 0.3])


def test_a_box_that_is_found_twice_matches_once() -> None:
    found = detections((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 9, 0.8, 0))
    assert compare(found, detections((0, 0, 10, 10, 0.9, 0))).by_label == {0: BoxCounts(matched=1, extra=1)}


def test_boxes_without_an_area_match_nothing() -> None:
    point = detections((5, 5, 5, 5, 0.9, 0))
    assert compare(point, point).by_label == {0: BoxCounts(0, 1, 1)}


def test_agreement_is_the_f1_of_the_boxes() -> None:
    assert BoxCounts(matched=8, missing=1, extra=3).agreement == 0.8
    assert BoxCounts().agreement == 1


@pytest.fixture(scope="module")
def ladder() -> dict[str, Manifest]:
    return {folder.profile: folder.read_manifest() for folder in Repository(BUNDLED).profiles("blood-cells", 1)}


def test_the_reference_is_the_uncompressed_though_others_are_more_accurate(ladder: dict[str, Manifest]) -> None:
    assert max(ladder.values(), key=lambda manifest: manifest.accuracy.ap).profile != "fp32"
    assert reference_of(ladder.values()).profile == "fp32"


def test_where_all_are_compressed_it_is_the_most_accurate(ladder: dict[str, Manifest]) -> None:
    compressed = [manifest for name, manifest in ladder.items() if name != "fp32"]
    assert reference_of(compressed).accuracy.ap == max(manifest.accuracy.ap for manifest in compressed)


def test_of_equals_it_is_the_first_by_name_in_whatever_order_they_come(ladder: dict[str, Manifest]) -> None:
    """The server has them in no order, and expects the agreement that was measured with the builder's reference."""
    twins = [ladder["fp32"].model_copy(update={"profile": name}) for name in ("fp32", "fp32-openvino")]
    assert reference_of(twins).profile == reference_of(reversed(twins)).profile == "fp32"


def test_the_bundled_profiles_say_how_far_they_agree(ladder: dict[str, Manifest]) -> None:
    assert ladder["fp32"].agreement is None
    for name in ladder.keys() - {"fp32"}:
        known = ladder[name].agreement
        assert known is not None
        assert (known.reference, known.images) == ("fp32", 87)
        assert 0.85 < known.f1 < 1
