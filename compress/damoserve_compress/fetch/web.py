"""Downloads over HTTP that go on where they were cut off."""

import http.client
import json
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from damoserve_compress.fetch.errors import SourceGone, SourceInvalid, TransferFailed, target_errors

ReportProgress = Callable[[int, int | None], object]
"""Takes the bytes that are there and, where it is known, how many they will be."""

TIMEOUT_SECONDS: Final = 30.0
CHUNK_BYTES: Final = 2**18
TRANSIENT: Final = frozenset({408, 416, 425, 429, 500, 502, 503, 504})
"""Status codes that say to try again; 416 with another range."""


@dataclass(frozen=True)
class RetryPolicy:
    """The number of tries of a transfer, and the seconds before the second; twice as many pass before each next.

    One that came further than any before is not counted.
    """

    count: int
    wait: float


DEFAULT_RETRIES: Final = RetryPolicy(count=5, wait=1.0)


@dataclass(frozen=True)
class PartialDownload:
    """The part of a file that has arrived, and beside it its address and version: two must not be mixed."""

    data: Path
    verified: bool
    """True where a hash will tell if two versions were mixed."""

    @property
    def origin(self) -> Path:
        return self.data.with_name(f"{self.data.name}.json")

    @property
    def size(self) -> int:
        return self.data.stat().st_size if self.data.is_file() else 0

    def begin(self, url: str, version: str | None) -> None:
        with target_errors(self.data):
            self.data.write_bytes(b"")
            self.origin.write_text(json.dumps({"url": url, "version": version}), encoding="utf-8")

    def append(self, chunk: bytes) -> None:
        with target_errors(self.data), self.data.open("ab") as file:
            file.write(chunk)

    def discard(self) -> None:
        self.data.unlink(missing_ok=True)
        self.origin.unlink(missing_ok=True)

    def conditions(self, url: str) -> dict[str, str]:
        """Headers that ask for the rest, or for all if it is another version by now (RFC 9110, 13.1.5 and 14.2).

        None where nothing would tell another version.
        """
        try:
            origin = json.loads(self.origin.read_bytes())
        except (OSError, ValueError):
            return {}
        if not self.size or origin["url"] != url or not (origin["version"] or self.verified):
            return {}
        same = {"If-Range": origin["version"]} if origin["version"] else {}
        return {"Range": f"bytes={self.size}-"} | same


def download(url: str, part: PartialDownload, report: ReportProgress, attempts: RetryPolicy) -> None:
    """Completes `part`. Raises SourceInvalid, SourceGone, TransferFailed or TargetUnusable."""
    if not _is_address(url):
        raise SourceInvalid(f"{url} is no address: it needs a host, and %XX for spaces and all beyond ASCII")
    failures, furthest = 0, part.size
    while True:
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
        failures = 1 if part.size > furthest else failures + 1
        furthest = max(furthest, part.size)
        if failures >= attempts.count:
            goes_on = f": it goes on from byte {part.size}" if part.conditions(url) else ""
            raise TransferFailed(f"{url} did not arrive: {failure}. Ask again{goes_on}")
        time.sleep(attempts.wait * 2 ** (failures - 1))


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        named = parts.hostname is not None and parts.port != 0 and "@" not in parts.netloc
    except ValueError:  # a bracket without its other half, a port that is no number
        return False
    return named and re.fullmatch("[!-~]+", url) is not None


def _transfer(url: str, part: PartialDownload, report: ReportProgress) -> None:
    """Raises OSError or HTTPException when it is cut off."""
    headers = {"User-Agent": "damoserve", **part.conditions(url)}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        if response.status != HTTPStatus.PARTIAL_CONTENT:
            part.begin(url, _version(response.headers))
        elif not (response.headers["Content-Range"] or "").startswith(f"bytes {part.size}-"):
            part.discard()
            raise ConnectionError("another part came than was asked for")
        length = response.headers["Content-Length"]
        total = part.size + int(length) if length else None
        report(part.size, total)
        while chunk := response.read(CHUNK_BYTES):
            part.append(chunk)
            report(part.size, total)
    if total is not None and part.size != total:
        raise ConnectionError(f"{part.size} of {total} bytes came")


def _version(headers: Message) -> str | None:
    """Reads what tells one version of a file from the next: no weak tag, nor a date beside one (RFC 9110, 13.1.5)."""
    tag: str | None = headers["ETag"]
    if tag is None:
        return headers["Last-Modified"]
    return None if tag.startswith("W/") else tag
