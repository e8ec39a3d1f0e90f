"""The command and its options."""

import io
import signal
import sys
from typing import Annotated, NoReturn
from urllib.parse import urlsplit

import typer

DEFAULT_URL = "http://127.0.0.1:9464/metrics"


def top(
    metrics: Annotated[
        str, typer.Option(envvar="DAMOSERVE_METRICS", metavar="URL", help="Where the server's metrics are.")
    ] = DEFAULT_URL,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two scrapes.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print the figures of one interval and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per interval, times in seconds.")
    ] = False,
) -> None:
    """Show what a running server does, live. The key q ends it."""
    if urlsplit(metrics).scheme not in {"http", "https"}:
        raise typer.BadParameter("must start with http:// or https://", param_hint="--metrics")
    if not (once or as_json or sys.stdout.isatty()):
        raise typer.BadParameter("without a terminal only one interval can be shown, or JSON", param_hint="--once")
    try:
        from damoserve_client.top import watch
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "prometheus_client":
            raise
        _fail("`damoserve top` needs prometheus-client. Install it: pip install 'damoserve[top]'")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # graphs are of characters that not every terminal has
    try:
        if once:
            watch.show_once(metrics, interval, as_json)
        elif as_json:
            watch.write_json(metrics, interval)
        else:
            # As an exception, which gives the terminal back on its way.
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
            watch.show_live(metrics, interval)
    except watch.NoMetrics as error:
        _fail(f"no metrics from {metrics}: {error}")
    except KeyboardInterrupt:
        pass


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1) from None
