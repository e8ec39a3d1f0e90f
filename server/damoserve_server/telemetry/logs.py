"""Formats the log. Every line that is written while a call is answered has the call's request id."""

import json
import logging
from datetime import UTC, datetime

from damoserve_server.telemetry.records import access_log, current, request_id
from damoserve_server.telemetry.settings import LogFormat, LogLevel


def configure(level: LogLevel, format: LogFormat) -> None:
    """Sets up the log of the whole process, which goes to standard error."""
    logging.basicConfig(level=level.upper(), handlers=[make_handler(format)])
    access_log.setLevel(logging.INFO)  # it has a setting of its own


def make_handler(format: LogFormat) -> logging.Handler:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if format is LogFormat.JSON else TextFormatter())
    return handler


class TextFormatter(logging.Formatter):
    """Writes lines for people: the message, followed by its fields as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        identifier = request_id.get()
        fields = getattr(record, "fields", {"request_id": identifier} if identifier else {})
        # Callers have chosen some of them: quoted, they cannot be taken for something else.
        return " ".join([super().formatMessage(record), *(f"{name}={json.dumps(fields[name])}" for name in fields)])


class JsonFormatter(logging.Formatter):
    """Writes lines for programs: one JSON object each."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get(),
            "trace_id": current.get().span.trace_id,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in line.items() if value != ""})
