"""Downloads over HTTP that go on where they were cut off."""

import http.client
import json
import socket
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import Final

from damoserve_compress.fetch import Report, SourceGone, TransferFailed

TIMEOUT_SECONDS: Final = 30.0
CHUNK_BYTES: Final = 2**18
TRANSIENT: Final = frozenset({408, 416, 425, 429, 500, 502, 503, 504})
"""Status codes that say to try again; 416 with another range."""


@dataclass(frozen=True)
class Attempts:
    """How often a transfer is tried, and how many seconds pass before the second time; twice as many before each next.

    One that brought anything is not counted.
    """

    count: int
    wait: float


PATIENT: Final = Attempts(count=5, wait=1.0)


@dataclass(frozen=True)
class Part:
    """What has arrived of a file, and beside it of which version of which address: two must not be mixed."""

    data: Path

    @property
    def origin(self) -> Path:
        return self.data.with_name(f"{self.data.name}.json")

    @property
    def size(self) -> int:
        return self.data.stat().st_size if self.data.is_file() else 0

    def begin(self, url: str, version: str | None) -> None:
        self.data.write_bytes(b"")
        self.origin.write_text(json.dumps({"url": url, "version": version}), encoding="utf-8")

    def discard(self) -> None:
        self.data.unlink(missing_ok=True)
        self.origin.unlink(missing_ok=True)

    def conditions(self, url: str) -> dict[str, str]:
        """Headers that ask for the rest, or for all if it is another version by now (RFC 9110, 13.1.5 and 14.2)."""
        try:
            origin = json.loads(self.origin.read_bytes())
        except (OSError, ValueError):
            return {}
        if not self.size or origin["url"] != url:
            return {}
        same = {"If-Range": origin["version"]} if origin["version"] else {}
        return {"Range": f"bytes={self.size}-"} | same


def download(url: str, part: Part, report: Report, attempts: Attempts) -> None:
    """Completes `part`. Raises SourceGone or TransferFailed."""
    failures = 0
    while True:
        before = part.size
        try:
            return _transfer(url, part, report)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in TRANSIENT:
                raise SourceGone(url, f"the server says {error.code} {error.reason}") from error
            failure: Exception = error
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.discard()
        except (OSError, http.client.HTTPException) as error:
            if isinstance(getattr(error, "reason", None), socket.gaierror):
                raise SourceGone(url, "its host is unknown, or this machine has no network") from error
            failure = error
        failures = 1 if part.size > before else failures + 1
        if failures >= attempts.count:
            raise TransferFailed(f"{url} did not arrive: {failure}. Ask again: it goes on from byte {part.size}")
        time.sleep(attempts.wait * 2 ** (failures - 1))


def _transfer(url: str, part: Part, report: Report) -> None:
    """Raises OSError or HTTPException when it is cut off."""
    headers = {"User-Agent": "damoserve", **part.conditions(url)}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            part.begin(url, _version(response.headers))
        length = response.headers["Content-Length"]
        total = part.size + int(length) if length else None
        with part.data.open("ab") as file:
            report(part.size, total)
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                report(file.tell(), total)
    if total is not None and part.size != total:
        raise ConnectionError(f"{part.size} of {total} bytes came")


def _version(headers: Message) -> str | None:
    """What tells one version of a file from the next; a weak tag does not."""
    tag: str | None = headers["ETag"]
    return headers["Last-Modified"] if tag is None or tag.startswith("W/") else tag
