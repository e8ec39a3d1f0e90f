"""Writes docs/metrics.md from the metrics themselves: `python -m damoserve_server.metrics.reference`."""

from collections.abc import Iterator

import grpc
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from damoserve_profiles.repository import BUNDLED, Repository
from damoserve_server.configuration.settings import Tiers
from damoserve_server.metrics.metrics import NO_TIER, STAGES, Metrics
from damoserve_server.models.catalogue import ProfileState
from damoserve_server.scheduling.selection import Tier

HEAD = """\
# Metrics

What a server shows at `http://HOST:9464/metrics`; this page is written by
`python -m damoserve_server.metrics.reference`. Counters exist from the start, at zero, and gauges too; a histogram of
seconds has the series of a method, profile, tier or stage from its first value on; those of fidelity exist where
`DAMOSERVE_FIDELITY__SHARE` is set. Nothing that a caller sends becomes a label. What gRPC itself refuses is in none of
them: messages that are too large, calls beyond `DAMOSERVE_MAX_CONCURRENT_CALLS`, connections whose TLS handshake fails.

At every moment the calls of a method that have started are those that were handled, with whatever code, and those that
are open; the requests of a tier that have arrived are those with an outcome and those in flight. Every tier's objective
is an edge of the histograms of seconds, so what is in time is counted and not interpolated.

| metric | type | labels | unit | meaning |
| --- | --- | --- | --- | --- |
"""
UNITS = {"seconds": "seconds", "bytes": "bytes", "accuracy": "ratio"}
"""The unit of a metric, by a word in its name."""
OPEN_LABELS = {"model", "profile", "label", "variant", "version", "grpc_service", "grpc_method"}
"""Labels whose values come from what is served, and so are not listed."""
MOST_VALUES = 8
"""The most values of a label that are listed; longer sets are documented elsewhere."""
SETS_OF_ONE = {"damoserve_build_info", "python_info"}
"""Metrics whose labels have one value each, which says what is installed, and so is not listed."""


def populated() -> CollectorRegistry:
    """Returns all that a server with one method and one profile, a bundled one, shows once both have been used."""
    registry = CollectorRegistry()
    metrics = Metrics(registry, Tiers())
    for kind in ("unary", "server_stream", "bidi_stream"):
        metrics.calls.of((kind, "damoserve.v1.DetectionService", "Detect")).end(grpc.StatusCode.OK, 0.0)
    repository = Repository(BUNDLED)
    model = repository.models()[0]
    manifest = repository.profiles(model, repository.serving(model))[0].read_manifest()
    metrics.add_profile(manifest)
    key = manifest.model, manifest.profile
    for tier in (*Tier, NO_TIER):
        metrics.requests.seconds.labels(*key, tier).observe(0.0)
    for stage in STAGES:
        metrics.requests.stage_seconds.labels(*key, stage).observe(0.0)
    metrics.fidelity.add_profile(manifest)
    metrics.fidelity.expect(manifest.model, manifest.profile, 1.0)
    metrics.models.show_states(manifest.model, {manifest.profile: ProfileState.ACTIVE})
    metrics.device.watch_queue(lambda: 0, lambda: 0)
    metrics.device.watch_pools({"free": lambda: 1, "leased": lambda: 0}, lambda: 0)
    return registry


def page() -> str:
    """Returns the page as Markdown, with one row for each metric, by name."""
    return HEAD + "".join(_row(family) for family in sorted(populated().collect(), key=lambda family: family.name))


def _row(family: Metric) -> str:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    unit = next((UNITS[word] for word in name.split("_") if word in UNITS), "")
    cells = (f"`{name}`", family.type, ", ".join(_labels(family)), unit, family.documentation)
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|\n"


def _labels(family: Metric) -> Iterator[str]:
    for label in (label for label in family.samples[0].labels if label not in {"le", "quantile"}):
        values = dict.fromkeys(sample.labels[label] for sample in family.samples)
        if label in OPEN_LABELS or family.name in SETS_OF_ONE or len(values) > MOST_VALUES:
            yield f"`{label}`"
        else:
            yield f"`{label}` ({', '.join(values)})"


if __name__ == "__main__":
    print(page(), end="")
