"""Counts what every model and profile has done, as Triton does: requests, images, batches, time of each stage."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from damoserve.kserve.v2 import inference_pb2 as pb
from damoserve_server.detection.request import DetectionResult
from damoserve_server.kserve.targets import Target, join_name

STAGES = {"compute_input": "decode", "compute_infer": "inference", "compute_output": "postprocess"}
"""Triton's name of a stage, and ours: an attribute of Timings."""


@dataclass
class CountAndTime:
    """A count, and the seconds that what is counted took altogether."""

    count: float = 0.0
    seconds: float = 0.0

    def add(self, seconds: float, count: float = 1.0) -> None:
        self.count += count
        self.seconds += seconds

    def to_duration(self) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=round(self.count), ns=round(1e9 * self.seconds))


def _totals() -> defaultdict[str, CountAndTime]:
    return defaultdict(CountAndTime)


@dataclass
class ModelRecord:
    """Totals of one model or profile in one version."""

    last: float = 0.0
    """The time of the last answer, in seconds since 1970."""
    images: int = 0
    requests: defaultdict[str, CountAndTime] = field(default_factory=_totals)
    """Totals of requests, by Triton's name of the stage or of the end."""
    batches: defaultdict[int, defaultdict[str, CountAndTime]] = field(default_factory=lambda: defaultdict(_totals))
    """Totals of batches, by their size and by Triton's name of the stage."""

    def succeeded(self, results: Sequence[DetectionResult], seconds: float) -> None:
        """Counts a request. Its images run side by side, so a stage takes as long as for the slowest of them."""
        self.last = time.time()
        self.images += len(results)
        self.requests["success"].add(seconds)
        for name, stage in {"queue": "waiting", **STAGES}.items():
            self.requests[name].add(max(getattr(result.timings, stage) for result in results))
        for result in results:
            self._add_to_batch(result)

    def failed(self, seconds: float) -> None:
        self.requests["fail"].add(seconds)

    def to_message(self, target: Target) -> pb.ModelStatistics:
        batches = [
            pb.InferBatchStatistics(batch_size=size, **{name: total.to_duration() for name, total in totals.items()})
            for size, totals in sorted(self.batches.items())
        ]
        return pb.ModelStatistics(
            name=target.name,
            version=target.version,
            last_inference=round(1000 * self.last),
            inference_count=self.images,
            execution_count=round(sum(totals["compute_infer"].count for totals in self.batches.values())),
            inference_stats=pb.InferStatistics(**{name: total.to_duration() for name, total in self.requests.items()}),
            batch_stats=batches,
        )

    def _add_to_batch(self, result: DetectionResult) -> None:
        """Counts the image for its share of the batch, whose time each of its images has."""
        share = 1 / result.batch_size
        totals = self.batches[result.batch_size]
        totals["compute_input"].add(result.timings.decode, share)
        totals["compute_infer"].add(result.timings.inference * share, share)
        totals["compute_output"].add(result.timings.postprocess, share)


class Statistics:
    """The records of all models and profiles.

    A request counts for its model, and for each profile that served it or, if it failed, that it named.
    """

    def __init__(self) -> None:
        self._records: defaultdict[tuple[str, str], ModelRecord] = defaultdict(ModelRecord)

    def succeeded(self, results: Sequence[DetectionResult], seconds: float) -> None:
        served: defaultdict[tuple[str, str], list[DetectionResult]] = defaultdict(list)
        for result in results:
            manifest = result.profile.manifest
            for name in (manifest.model, join_name(manifest.model, manifest.profile)):
                served[name, str(manifest.version)].append(result)
        for key, results_of_key in served.items():
            self._records[key].succeeded(results_of_key, seconds)

    def failed(self, target: Target, seconds: float) -> None:
        for name in {target.model.name, target.name}:
            self._records[name, target.version].failed(seconds)

    def of(self, target: Target) -> pb.ModelStatistics:
        return self._records[target.name, target.version].to_message(target)
