"""Series that are counted and written by the row, not one by one.

prometheus_client locks, collects and formats every series by itself. With a series for every method, code, profile,
tier and stage that took 28 ms of an idle server for each scrape, 80 of a busy one, and calls that ended between two
series were in one of them only. Here the numbers of a row are seen as they were at one moment, and a row that has not
changed since it was last written is not written again.
"""

import time
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from math import inf

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

Numbers = list[float]


class Row(ABC):
    """Numbers that one thread counts and any may read: a copy of the list is one step of the interpreter."""

    def __init__(self, size: int) -> None:
        self.numbers: Numbers = [0] * size
        self._names: list[list[str]] = []
        self._written: dict[bool, tuple[Numbers, list[str]]] = {}

    @abstractmethod
    def samples(self, numbers: Numbers) -> Sequence[Sequence[Sample]]:
        """What these numbers are in each of the metrics that the row belongs to; always the same series."""

    def texts(self, openmetrics: bool) -> list[str]:
        """The lines of each of the metrics."""
        numbers = self.numbers.copy()
        written = self._written.get(openmetrics)
        if written is None or written[0] != numbers:
            written = numbers, self._write(self.samples(numbers), openmetrics)
            self._written[openmetrics] = written
        return written[1]

    def _write(self, metrics: Sequence[Sequence[Sample]], openmetrics: bool) -> list[str]:
        if not self._names:
            self._names = [_names(samples) for samples in metrics]
        return [
            "".join(
                f"{name} {_written(sample.value)}{_exemplar(sample) if openmetrics else ''}\n"
                for name, sample in zip(names, samples, strict=True)
            )
            for names, samples in zip(self._names, metrics, strict=True)
        ]


class Rows(Collector, ABC):
    """Metrics that have the same rows. `heads` are these metrics without their samples."""

    def __init__(self, *heads: Metric) -> None:
        self._heads = heads

    @abstractmethod
    def rows(self) -> Iterable[Row]:
        """May be called by any thread."""

    def describe(self) -> Iterable[Metric]:
        return self._heads

    def collect(self) -> Iterator[Metric]:
        rows = [row.samples(row.numbers.copy()) for row in self.rows()]
        for place, head in enumerate(self._heads):
            metric = Metric(head.name, head.documentation, head.type)
            metric.samples = [sample for metrics in rows for sample in metrics[place]]
            yield metric

    def text(self, openmetrics: bool) -> str:
        rows = [row.texts(openmetrics) for row in self.rows()]
        return "".join(
            "".join([_head(head, openmetrics), *(texts[place] for texts in rows)])
            for place, head in enumerate(self._heads)
        )


class Distribution(Row):
    """A row of a histogram: a sum, and how many values lie in each bucket."""

    def __init__(self, name: str, labels: Mapping[str, str], edges: Sequence[float]) -> None:
        super().__init__(2 + len(edges))
        self._edges = edges
        self._exemplars: dict[int, Exemplar] = {}
        self._name = name
        self._labels = dict(labels)
        self._buckets = [{**labels, "le": _written(edge)} for edge in (*edges, inf)]

    @property
    def count(self) -> float:
        return sum(self.numbers[1:])

    def observe(self, value: float, exemplar: dict[str, str] | None = None) -> None:
        """`exemplar` has the labels of something that took so long, a trace for example."""
        place = 1 + bisect_left(self._edges, value)
        if exemplar is not None:
            self._exemplars[place] = Exemplar(exemplar, value, time.time())
        numbers = self.numbers
        numbers[place] += 1
        numbers[0] += value

    def samples(self, numbers: Numbers) -> Sequence[Sequence[Sample]]:
        total, *counts = numbers
        below = list(accumulate(counts))
        return [
            [
                *(
                    Sample(f"{self._name}_bucket", labels, count, None, self._exemplars.get(place))
                    for place, (labels, count) in enumerate(zip(self._buckets, below, strict=True), 1)
                ),
                Sample(f"{self._name}_count", self._labels, below[-1]),
                Sample(f"{self._name}_sum", self._labels, total),
            ]
        ]


class Histogram(Rows):
    """With the interface of prometheus_client's, which only one thread may use to observe."""

    def __init__(self, name: str, documentation: str, labelnames: Sequence[str], edges: Sequence[float]) -> None:
        super().__init__(Metric(name, documentation, "histogram"))
        self._name = name
        self._labelnames = tuple(labelnames)
        self._edges = tuple(edges)
        self._distributions: dict[tuple[str, ...], Distribution] = {}

    def labels(self, *values: str) -> Distribution:
        if values not in self._distributions:
            labels = dict(zip(self._labelnames, map(str, values), strict=True))
            self._distributions[values] = Distribution(self._name, labels, self._edges)
        return self._distributions[values]

    def rows(self) -> Iterable[Row]:
        """Without those that have no value yet: of an idle server their zeros were two thirds of a scrape."""
        return [row for row in list(self._distributions.values()) if row.count]


class _Only(Collector):
    """As the library writes what it is given."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return [self._metric]


def _names(samples: Sequence[Sample]) -> list[str]:
    """The series, with their labels, in the format of Prometheus."""
    metric = Metric("any", "", "unknown")
    metric.samples = list(samples)
    lines = generate_latest(_Only(metric)).decode().splitlines()
    return [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]


def _head(metric: Metric, openmetrics: bool) -> str:
    name = f"{metric.name}_total" if metric.type == "counter" and not openmetrics else metric.name
    return f"# HELP {name} {metric.documentation}\n# TYPE {name} {metric.type}\n"


def _written(value: float) -> str:
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _exemplar(sample: Sample) -> str:
    if sample.exemplar is None:
        return ""
    escaped = {
        name: value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        for name, value in sample.exemplar.labels.items()
    }
    labels = ",".join(f'{name}="{value}"' for name, value in escaped.items())
    return f" # {{{labels}}} {_written(sample.exemplar.value)} {sample.exemplar.timestamp}"
