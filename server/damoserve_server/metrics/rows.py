"""Series that are counted and written by the row, not one by one.

A row is a list of numbers that belong together: the calls of one method that have begun, and those that have ended
with each code; or the sum and the buckets of one histogram. Each number is a line of the text that Prometheus reads.

prometheus_client has an object with a lock for every number, and collects and formats each at every scrape. With a
series for every method, code, profile, tier and stage that took 28 ms of an idle server, 80 of a busy one. And the
numbers did not add up: a call that ended between the reading of two series was in one of them only.

So a row is counted and read without a lock. One thread adds to it, the event loop's. A scrape, in another thread,
copies the list; that is one step of the interpreter, so the copy shows one moment. For sums to be right at that
moment, an event adds to one number only: a request that ends is one more of its end, and what is in flight is
computed from the copy, as the arrivals less the ends. A histogram adds to a bucket and then to its sum. Its count is
computed from the buckets; its sum may lack the value that is being added, until the next scrape.

A row that has not changed is not written again. Its lines are kept with the numbers that they show, and most rows, of
profiles and methods that nobody uses now, have not changed since the last scrape. The beginning of a line, the name
and the labels, never changes: the library writes it once, so that it is escaped as everywhere.

For the library a row is still a metric like all others (`Rows.collect`).
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
"""The numbers of a row: all of its counts at one moment."""


class Row(ABC):
    """Numbers that one thread counts and any may read."""

    def __init__(self, size: int) -> None:
        self.numbers: Numbers = [0] * size
        self._series: list[list[str]] = []
        # By whether the format is OpenMetrics: the numbers that were written last, and their lines.
        self._last_written: dict[bool, tuple[Numbers, list[str]]] = {}

    @abstractmethod
    def samples(self, numbers: Numbers) -> Sequence[Sequence[Sample]]:
        """Returns the numbers as samples, a list for each metric that the row belongs to; always of the same series."""

    def texts(self, openmetrics: bool) -> list[str]:
        """Returns the lines of the row as one text for each metric that it belongs to."""
        numbers = self.numbers.copy()
        last = self._last_written.get(openmetrics)
        if last is None or last[0] != numbers:
            last = numbers, self._format(self.samples(numbers), openmetrics)
            self._last_written[openmetrics] = last
        return last[1]

    def _format(self, metrics: Sequence[Sequence[Sample]], openmetrics: bool) -> list[str]:
        if not self._series:
            self._series = [_series(samples) for samples in metrics]
        return [
            "".join(
                f"{series} {_number(sample.value)}{_exemplar(sample) if openmetrics else ''}\n"
                for series, sample in zip(all_series, samples, strict=True)
            )
            for all_series, samples in zip(self._series, metrics, strict=True)
        ]


class Rows(Collector, ABC):
    """Metrics that have the same rows."""

    def __init__(self, *families: Metric) -> None:
        """`families` are these metrics without their samples, in the order in which a row has them."""
        self._families = families

    @abstractmethod
    def rows(self) -> Iterable[Row]:
        """Returns the rows that are shown now. Any thread may call it."""

    def describe(self) -> Iterable[Metric]:
        return self._families

    def collect(self) -> Iterator[Metric]:
        rows = [row.samples(row.numbers.copy()) for row in self.rows()]
        for number, family in enumerate(self._families):
            metric = Metric(family.name, family.documentation, family.type)
            metric.samples = [sample for metrics in rows for sample in metrics[number]]
            yield metric

    def text(self, openmetrics: bool) -> str:
        """Returns the metrics as Prometheus reads them, in OpenMetrics or in its own format."""
        rows = [row.texts(openmetrics) for row in self.rows()]
        return "".join(
            "".join([_head(family, openmetrics), *(texts[number] for texts in rows)])
            for number, family in enumerate(self._families)
        )


class Distribution(Row):
    """A row of a histogram: the sum of the values, and how many of them lie in each bucket."""

    def __init__(self, name: str, labels: Mapping[str, str], edges: Sequence[float]) -> None:
        super().__init__(2 + len(edges))
        self._edges = edges
        self._exemplars: dict[int, Exemplar] = {}
        self._name = name
        self._labels = dict(labels)
        self._buckets = [{**labels, "le": _number(edge)} for edge in (*edges, inf)]

    @property
    def count(self) -> float:
        return sum(self.numbers[1:])

    def observe(self, value: float, exemplar: dict[str, str] | None = None) -> None:
        """Adds a value. `exemplar` has the labels of something that took so long, a trace for example."""
        column = 1 + bisect_left(self._edges, value)
        if exemplar is not None:
            self._exemplars[column] = Exemplar(exemplar, value, time.time())
        numbers = self.numbers
        numbers[column] += 1
        numbers[0] += value

    def samples(self, numbers: Numbers) -> Sequence[Sequence[Sample]]:
        total, *counts = numbers
        below = list(accumulate(counts))
        return [
            [
                *(
                    Sample(f"{self._name}_bucket", labels, count, None, self._exemplars.get(column))
                    for column, (labels, count) in enumerate(zip(self._buckets, below, strict=True), 1)
                ),
                Sample(f"{self._name}_count", self._labels, below[-1]),
                Sample(f"{self._name}_sum", self._labels, total),
            ]
        ]


class Histogram(Rows):
    """A histogram with the interface of prometheus_client's; only one thread may observe."""

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
        """Leaves out distributions without a value: of an idle server their zeros were two thirds of a scrape."""
        return [row for row in list(self._distributions.values()) if row.count]


class _OneMetric(Collector):
    """A single metric, to have the library write it."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return [self._metric]


def _series(samples: Sequence[Sample]) -> list[str]:
    """Returns the name and the labels of each sample, in the format of Prometheus."""
    metric = Metric("any", "", "unknown")
    metric.samples = list(samples)
    lines = generate_latest(_OneMetric(metric)).decode().splitlines()
    return [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]


def _head(metric: Metric, openmetrics: bool) -> str:
    name = f"{metric.name}_total" if metric.type == "counter" and not openmetrics else metric.name
    return f"# HELP {name} {metric.documentation}\n# TYPE {name} {metric.type}\n"


def _number(value: float) -> str:
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def _exemplar(sample: Sample) -> str:
    if sample.exemplar is None:
        return ""
    escaped = {
        name: value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        for name, value in sample.exemplar.labels.items()
    }
    labels = ",".join(f'{name}="{value}"' for name, value in escaped.items())
    return f" # {{{labels}}} {_number(sample.exemplar.value)} {sample.exemplar.timestamp}"
