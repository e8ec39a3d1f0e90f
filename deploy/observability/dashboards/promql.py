"""Expressions of PromQL that more than one panel has. All of them are about the chosen instances only."""

INSTANCE = 'instance=~"$instance"'
MODEL = 'model=~"$model"'
PROFILE = 'profile=~"$profile"'
TIER = 'tier=~"$tier"'
WINDOW = "$__rate_interval"


def series(metric: str, *matchers: str) -> str:
    """Returns the series of a metric, of the chosen instances, where all matchers hold."""
    return f"{metric}{{{', '.join((INSTANCE, *matchers))}}}"


def total(metric: str, *matchers: str, by: str = "", aggregation: str = "sum") -> str:
    """Returns a gauge over all instances, summed or as `aggregation` says."""
    return f"{_grouped(aggregation, by)} ({series(metric, *matchers)})"


def rate(metric: str, *matchers: str, by: str = "", window: str = WINDOW) -> str:
    """Returns the growth of a counter in a second."""
    return f"{_grouped('sum', by)} (rate({series(metric, *matchers)}[{window}]))"


def increase(metric: str, *matchers: str, by: str = "", window: str = WINDOW) -> str:
    """Returns the growth of a counter in the window, by default from one point of the graph to the next."""
    return f"{_grouped('sum', by)} (increase({series(metric, *matchers)}[{window}]))"


def mean(metric: str, *matchers: str, by: str = "") -> str:
    """Returns the mean of a histogram or a summary."""
    return f"{rate(f'{metric}_sum', *matchers, by=by)} / {rate(f'{metric}_count', *matchers, by=by)}"


def quantile(share: float, metric: str, *matchers: str, by: str = "", window: str = WINDOW) -> str:
    """Returns a quantile of a histogram; `share` is 0 to 1."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share:g}, {rate(f'{metric}_bucket', *matchers, by=labels, window=window)})"


def _grouped(aggregation: str, by: str) -> str:
    return f"{aggregation} by ({by})" if by else aggregation


REQUEST_SECONDS = "damoserve_request_seconds"
OBJECTIVE = total("damoserve_tier_objective_seconds", TIER, by="tier", aggregation="max")
