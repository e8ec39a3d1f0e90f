"""Turns seconds into a Duration of protobuf."""

from google.protobuf.duration_pb2 import Duration


def to_duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
