"""Scrapes a server again and again, and shows what happened in between."""

import dataclasses
import json
import time

import typer
from rich.console import Console
from rich.constrain import Constrain
from rich.live import Live

from damoserve_client.top.keys import QUIT, Wait, keys
from damoserve_client.top.reading import Reading, read
from damoserve_client.top.scrape import NoMetrics, Scrape, scrape
from damoserve_client.top.screen import History, Picture, duration

__all__ = ["NoMetrics", "show_live", "show_once", "write_json"]

TIMEOUT = 2.0
"""Seconds for a scrape; a key is heard after it."""
WIDTH = 100
"""Columns at most: what belongs together would come too far apart."""


class Server:
    """The address that the metrics come from."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._last: Scrape | None = None

    def read(self) -> Reading | None:
        """Returns what happened since the last answer; None at the first. Raises NoMetrics."""
        latest = scrape(self._url, TIMEOUT)
        before, self._last = self._last, latest
        return None if before is None else read(before, latest)


def show_once(url: str, interval: float, as_json: bool) -> None:
    """Raises NoMetrics. `interval` is in seconds, here and below."""
    server = Server(url)
    server.read()
    time.sleep(interval)
    reading = server.read()
    if as_json:
        _write(reading)
    else:
        Console().print(Constrain(Picture(url, reading), WIDTH))


def write_json(url: str, interval: float) -> None:
    """An object per interval, without end; none while the server does not answer. Raises KeyboardInterrupt."""
    server = Server(url)
    while True:
        try:
            reading = server.read()
        except NoMetrics as error:
            typer.echo(f"no metrics from {url}: {error}", err=True)
        else:
            _write(reading)
        time.sleep(interval)


def show_live(url: str, interval: float) -> None:
    """Draws until the key q is pressed. What was read last stays on the screen while the server does not answer."""
    server, history = Server(url), History(interval)
    reading, answered = None, time.monotonic()
    with keys() as wait, Live(screen=True, auto_refresh=False) as live:
        while True:
            started = time.monotonic()
            trouble = None
            try:
                latest = server.read()
                reading, answered = latest or reading, time.monotonic()
            except NoMetrics as error:
                latest = None
                trouble = f"{error}; no metrics for {duration(time.monotonic() - answered)}, trying again"
            history.add(latest)
            live.update(Constrain(Picture(url, reading, history, trouble), WIDTH), refresh=True)
            if _quit(wait, started + interval):
                return


def _quit(wait: Wait, end: float) -> bool:
    """Tells whether q is pressed before the end, on the monotonic clock."""
    while (left := end - time.monotonic()) > 0:
        if wait(left).lower() == QUIT:
            return True
    return wait(0).lower() == QUIT


def _write(reading: Reading | None) -> None:
    if reading is not None:
        typer.echo(json.dumps(dataclasses.asdict(reading)))
