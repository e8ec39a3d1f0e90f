"""The two lines that the log has of a stop: why it began and what was inside, then what became of that."""

import logging
import time

from damoserve_server.metrics.requests import Outcome, RequestsByTier, Totals

ANSWERED = (Outcome.IN_TIME, Outcome.LATE)
REFUSED = (Outcome.REFUSED, Outcome.INVALID)
ABANDONED = (Outcome.CANCELLED, Outcome.EXPIRED)
FAILED = (Outcome.FAILED,)

log = logging.getLogger(__name__)


class Shutdown:
    """Writes one line when a stop begins and one when it is over, however often either method is called."""

    def __init__(self, requests: RequestsByTier) -> None:
        self._requests = requests
        self._before: Totals | None = None
        self._began = 0.0

    def begin(self, signal: str) -> None:
        """Logs that a stop begins; `signal` is the name of what asked for it."""
        if self._before is not None:
            return
        self._began = time.monotonic()
        self._before = self._requests.totals()
        _log_fields("stopping", signal=signal, requests_inside=self._before.inside)

    def end(self) -> None:
        """Logs what has ended since `begin`, requests that came after it included."""
        before, now = self._before, self._requests.totals()
        if before is None:
            return
        self._before = None
        ended = {outcome: now.ended[outcome] - before.ended[outcome] for outcome in Outcome}
        _log_fields(
            "stopped",
            seconds=round(time.monotonic() - self._began, 3),
            answered=sum(ended[outcome] for outcome in ANSWERED),
            refused=sum(ended[outcome] for outcome in REFUSED),
            # What is inside even now has nobody who would wait for it.
            abandoned=sum(ended[outcome] for outcome in ABANDONED) + now.inside,
            failed=sum(ended[outcome] for outcome in FAILED),
        )


def _log_fields(message: str, **fields: str | float) -> None:
    log.info(message, extra={"fields": fields})
