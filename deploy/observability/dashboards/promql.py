"""The shapes of expressions that more than one panel has. Every one of them is about the chosen instances only."""

INSTANCE = 'instance=~"$instance"'
MODEL = 'model=~"$model"'
PROFILE = 'profile=~"$profile"'
TIER = 'tier=~"$tier"'
WINDOW = "$__rate_interval"


def series(metric: str, *matchers: str) -> str:
    """The metric of the chosen instances, where all matchers hold."""
    return f"{metric}{{{', '.join((INSTANCE, *matchers))}}}"


def total(metric: str, *matchers: str, by: str = "", how: str = "sum") -> str:
    """A gauge over all instances."""
    return f"{_grouped(how, by)} ({series(metric, *matchers)})"


def rate(metric: str, *matchers: str, by: str = "", window: str = WINDOW) -> str:
    """How much a counter grows in a second."""
    return f"{_grouped('sum', by)} (rate({series(metric, *matchers)}[{window}]))"


def increase(metric: str, *matchers: str, by: str = "", window: str = WINDOW) -> str:
    """How much a counter has grown in the window, which is not shorter than from one point of the graph to the next."""
    return f"{_grouped('sum', by)} (increase({series(metric, *matchers)}[{window}]))"


def mean(metric: str, *matchers: str, by: str = "") -> str:
    """Of a histogram or a summary."""
    return f"{rate(f'{metric}_sum', *matchers, by=by)} / {rate(f'{metric}_count', *matchers, by=by)}"


def quantile(share: float, metric: str, *matchers: str, by: str = "", window: str = WINDOW) -> str:
    """Of a histogram; `share` is 0 to 1."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share:g}, {rate(f'{metric}_bucket', *matchers, by=labels, window=window)})"


def _grouped(how: str, by: str) -> str:
    return f"{how} by ({by})" if by else how


REQUEST_SECONDS = "damoserve_request_seconds"
OBJECTIVE = total("damoserve_tier_objective_seconds", TIER, by="tier", how="max")
