"""What the commands print, laid out for a terminal of 80 columns. Names from a server are made safe to print here."""

import dataclasses
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from damoserve.v1.admin_pb2 import ModelStatus
from damoserve_client.terminal import plain
from damoserve_client.types import DetectionResult, ProfileInfo


def detections(result: DetectionResult) -> Table:
    """One row per detection, corners in pixels."""
    table = _table(["label"], ["score", "x min", "y min", "x max", "y max"])
    for detection in result.detections:
        corners = dataclasses.astuple(detection.box)
        table.add_row(_text(detection.label), f"{detection.score:.2f}", *(f"{value:.0f}" for value in corners))
    return table


def profiles(infos: Sequence[ProfileInfo]) -> Table:
    """One row per profile with what was measured of it."""
    table = _table(["model", "profile", "state"], ["AP", "AP50", "MB", "params\n(M)", "MACs\n(G)", "expected\nms"])
    for info in infos:
        table.add_row(
            _text(f"{info.model}/{info.model_version}"),
            _text(info.profile),
            info.state,
            f"{info.average_precision:.3f}",
            f"{info.average_precision_50:.3f}",
            megabytes(info),
            f"{info.parameter_count / 1e6:.2f}",
            f"{info.mac_count / 1e9:.2f}",
            milliseconds(info.expected_latency),
        )
    return table


def failures(infos: Sequence[ProfileInfo]) -> list[str]:
    """One line per profile that failed, with the cause."""
    return [plain(f"{info.profile} failed: {info.error}") for info in infos if info.state == "failed"]


def models(statuses: Sequence[ModelStatus]) -> Table:
    """One row per model: what serves, and what could."""
    table = _table(["model", "serving", "versions", "aliases"], [])
    for status in statuses:
        versions = ", ".join(map(str, status.versions))
        aliases = ", ".join(f"{name}={version}" for name, version in sorted(status.aliases.items()))
        table.add_row(_text(status.model), str(status.serving_version or "-"), versions, _text(aliases))
    return table


def by_profile(rows: Sequence[tuple[ProfileInfo, DetectionResult]]) -> Table:
    """Returns a table of how each profile answered for one image, times in ms."""
    table = _table(
        ["profile", "detections"],
        ["AP", "MB", "decode\nms", "queue\nms", "inference\nms", "post-\nprocess", "total\nms"],
    )
    for info, result in rows:
        took = result.timings
        times = map(milliseconds, (took.decode, took.queue, took.inference, took.postprocess, took.total))
        table.add_row(
            _text(info.profile), _text(counts(result)), f"{info.average_precision:.3f}", megabytes(info), *times
        )
    return table


def by_tier(rows: Sequence[tuple[str, DetectionResult]]) -> Table:
    """Returns a table of the profile that each tier got for one image, and why."""
    table = _table(["tier", "profile chosen", "why"], ["total ms"])
    for tier, result in rows:
        table.add_row(tier, _text(result.profile), reason(result), milliseconds(result.timings.total))
    return table


def counts(result: DetectionResult) -> str:
    """Returns the counts by label: `17 RBC, 1 WBC`."""
    return ", ".join(f"{count} {plain(label)}" for label, count in result.count_by_label().items()) or "nothing"


def served(result: DetectionResult) -> str:
    """Returns who answered and why: `blood-cells 1, int8, most accurate in time`."""
    return plain(f"{result.model} {result.model_version}, {result.profile}, {reason(result)}")


def reason(result: DetectionResult) -> str:
    return result.selection_reason.replace("_", " ")


def megabytes(info: ProfileInfo) -> str:
    return f"{info.model_bytes / 1e6:.1f}"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


def _text(name: str) -> Text:
    """A name from a server for a cell, in which rich looks for no markup."""
    return Text(plain(name))


def _table(left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in left:
        table.add_column(column, no_wrap=column != "detections")
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    return table
