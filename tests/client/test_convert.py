from hypothesis import given
from hypothesis import strategies as st

from damoserve.v1 import detection_pb2 as pb
from damoserve_client.convert import detect_request, to_result


@given(st.integers(min_value=1, max_value=10**13))
def test_a_budget_keeps_its_nanoseconds(nanoseconds: int) -> None:
    budget = detect_request(b"", {"budget": nanoseconds / 1e9}).latency_budget
    assert budget.ToNanoseconds() == nanoseconds


def test_a_reason_that_the_client_does_not_know_is_unspecified() -> None:
    newer = pb.DetectResponse.FromString(pb.DetectResponse(profile="int8").SerializeToString() + b"\x38\x63")
    assert newer.selection_reason == 99
    assert to_result(newer).selection_reason == "unspecified"


def test_counts_name_the_most_frequent_class_first() -> None:
    response = pb.DetectResponse(detections=[pb.Detection(label=label) for label in ("WBC", "RBC", "RBC")])
    assert list(to_result(response).count_by_label().items()) == [("RBC", 2), ("WBC", 1)]
