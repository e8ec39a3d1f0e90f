"""The server's metrics, as its endpoint for Prometheus tells them."""

import http.client
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

from damoserve_client.terminal import plain
from damoserve_client.top.quantiles import Buckets

START = "process_start_time_seconds"

Labels = frozenset[tuple[str, str]]


class NoMetrics(Exception):
    """Nobody answers, or what answers tells no metrics; the text says which."""


@dataclass(frozen=True)
class Series:
    """The value of each series, by its name and its labels."""

    values: Mapping[str, Mapping[Labels, float]]

    def total(self, name: str, **labels: str) -> float | None:
        """The sum over all series with these labels; None if there is none."""
        wanted = labels.items()
        found = [value for own, value in self.values.get(name, {}).items() if wanted <= own]
        return sum(found) if found else None

    def by(self, name: str, *keys: str, **labels: str) -> dict[tuple[str, ...], float]:
        """The sums for each combination of the values of the labels `keys`, over all series with these `labels`."""
        sums: dict[tuple[str, ...], float] = {}
        for own, value in self.values.get(name, {}).items():
            if labels.items() <= own:
                named = dict(own)
                key = tuple(named.get(each, "") for each in keys)
                sums[key] = sums.get(key, 0.0) + value
        return sums

    def buckets(self, name: str, **labels: str) -> Buckets:
        """The histograms with these labels as one."""
        edges = self.by(f"{name}_bucket", "le", **labels)
        return sorted((float(edge), count) for (edge,), count in edges.items())

    def since(self, before: Self) -> "Series":
        """Returns what was added to each series; all of it where the server has started anew, as counters then do."""
        restarted = self.total(START) != before.total(START)
        return Series(
            {
                name: values if restarted else _increase(before.values.get(name, {}), values)
                for name, values in self.values.items()
            }
        )


@dataclass(frozen=True)
class Scrape:
    """The metrics of a server at one moment, in seconds on the monotonic clock."""

    moment: float
    series: Series


def scrape(url: str, timeout: float) -> Scrape:
    """Raises NoMetrics. `timeout` is in seconds."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            text = response.read().decode()
        series = parse(text)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise NoMetrics(plain(getattr(reason, "strerror", None) or str(reason))) from None
    except ValueError:
        raise NoMetrics("what answers there tells no metrics") from None
    return Scrape(time.monotonic(), series)


def parse(text: str) -> Series:
    """The series in Prometheus' text format, their labels made safe to print.

    Raises ValueError if it is something else, or holds none of a server's.
    """
    values: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = frozenset((name, plain(value)) for name, value in sample.labels.items())
            values.setdefault(sample.name, {})[labels] = sample.value
    if not any(name.startswith("damoserve_") for name in values):
        raise ValueError("no metrics of a damoserve server")
    return Series(values)


def _increase(before: Mapping[Labels, float], after: Mapping[Labels, float]) -> dict[Labels, float]:
    """A counter that has fallen was set to zero in between."""
    added = {labels: value - before.get(labels, 0.0) for labels, value in after.items()}
    return {labels: value if value >= 0 else after[labels] for labels, value in added.items()}
